"""The oracle sees what it is there for: a tool that goes wrong in one way after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from asking import Asked
from building import Net
from judging import judge
from onnx import numpy_helper
from recipe import Drawn

import fusewright
from fusewright.errors import ModelError

Spoil = Callable[[onnx.ModelProto], None]
REAL = fusewright.optimize
CHECKS = ("twice", "plan", "inspect", "strip")


def _drawn() -> Drawn:
    net = Net(opset=17)
    x = net.op("Relu", net.conv(net.input("x", "batch", 4, 8, 8), 8, 4))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.conv(x, 8, 8)))
    proto = net.proto(net.op("Gemm", x, net.draw(8, 4), net.draw(4)))
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((2, 4, 8, 8)).astype(np.float32)} for _ in range(12)]
    return Drawn(proto, feeds)


def _weights(model: onnx.ModelProto) -> None:
    """The last weight is nine times what it was."""
    _change([t for t in model.graph.initializer if len(t.dims) > 1][-1], 9.0)


def _scale(model: onnx.ModelProto) -> None:
    """The scale of an activation is forty times what it was."""
    stored = {t.name: t for t in model.graph.initializer}
    pair = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    _change(stored[pair.input[1]], 40.0)


def _change(tensor: onnx.TensorProto, factor: float) -> None:
    array = numpy_helper.to_array(tensor).copy()
    array.flat[:] *= np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _name(model: onnx.ModelProto) -> None:
    old = model.graph.output[0].name
    model.graph.output[0].name = "other"
    for node in model.graph.node:
        node.output[:] = ["other" if name == old else name for name in node.output]


def _cut(model: onnx.ModelProto) -> None:
    del model.graph.node[0]


@pytest.mark.parametrize(
    ("precision", "spoil", "kinds"),
    [
        ("int8", None, set()),
        ("int8+bf16", None, set()),
        ("fp32", None, set()),
        ("fp32", _weights, {"wrong", "twice", "plan"}),
        ("int8", _weights, {"strip"}),
        ("int8", _scale, {"poor scale"}),
        ("int8", _name, {"interface"}),
        ("int8", _cut, {"level off", "level all", "parser"}),
    ],
)
def test_what_is_spoilt_is_seen(
    precision: str, spoil: Spoil | None, kinds: set[str], monkeypatch: Any, tmp_path: Path
) -> None:
    def spoilt(model: Path, out: Path, *rest: Any, **settings: Any) -> Any:
        result = REAL(model, out, *rest, **settings)
        if spoil is not None and out.name == "o.onnx":
            made = onnx.load(out)
            spoil(made)
            onnx.save(made, out)
        return result

    if "parser" in kinds:
        pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    monkeypatch.setattr(fusewright, "optimize", spoilt)
    verdict = judge(_drawn(), Asked(precision, checks=CHECKS), tmp_path)
    found = {finding.kind for finding in verdict.findings}
    assert not verdict.skipped
    assert kinds <= found and bool(kinds) == bool(found), verdict.findings


@pytest.mark.parametrize(
    ("error", "kind"),
    [(KeyError("x"), "exception"), (ModelError("Q/DQ linter: a pair"), "refused")],
)
def test_what_the_tool_raises_is_seen(
    error: Exception, kind: str, monkeypatch: Any, tmp_path: Path
) -> None:
    def raises(*arguments: Any, **settings: Any) -> Any:
        raise error

    monkeypatch.setattr(fusewright, "optimize", raises)
    (finding,) = judge(_drawn(), Asked("int8"), tmp_path).findings
    assert finding.kind == kind
