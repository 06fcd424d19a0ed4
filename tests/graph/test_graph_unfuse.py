"""Operators that onnxruntime's optimizer writes, as standard ones that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net, assert_equal

from fusewright import RandomSamples, inspect, optimize
from fusewright.graph.refused import FUSED as DOMAIN
from fusewright.graph.unfuse import is_fused, write_out

Build = Callable[[Net], str]


def _fused(net: Net, op: str, *reads: str, **attrs: object) -> str:
    return net.op(op, *reads, domain=DOMAIN, **attrs)


def _rows(net: Net) -> str:
    return net.input("x", 2, 6, 8)


def _norm(net: Net, *more: str, **attrs: object) -> str:
    reads = [_rows(net), net.input("skip", 2, 6, 8), net.positive(8), *more]
    return _fused(net, "SkipLayerNormalization", *reads, **attrs)


def _conv(net: Net, *more: str, **attrs: object) -> str:
    x, w = net.input("x", 1, 4, 8, 8), net.draw(8, 4, 3, 3)
    return _fused(net, "FusedConv", x, w, *more, pads=[1] * 4, strides=[2, 2], **attrs)


def _attention(net: Net, bias: bool = True, **attrs: object) -> str:
    reads = [_rows(net), net.draw(8, 48), *([net.draw(48)] if bias else [])]
    return _fused(net, "Attention", *reads, num_heads=4, **attrs)


def _heads(net: Net) -> str:
    """q·kᵀ/√d of computed q and k, whose ranks follow from what is in front."""
    q = net.op("Reshape", _fused(net, "QuickGelu", _rows(net)), [2, 6, 2, 4])
    q = net.op("Transpose", q, perm=[0, 2, 1, 3])
    return _fused(net, "FusedMatMul", q, q, transB=1, alpha=0.5)


FORMS: dict[str, Build] = {
    "BiasGelu": lambda n: _fused(n, "BiasGelu", _rows(n), n.draw(8)),
    "FastGelu": lambda n: _fused(n, "FastGelu", _rows(n)),
    "FastGelu with bias": lambda n: _fused(n, "FastGelu", _rows(n), n.draw(8)),
    "Gelu": lambda n: _fused(n, "Gelu", _rows(n)),
    "QuickGelu": lambda n: _fused(n, "QuickGelu", _rows(n)),
    "QuickGelu, its alpha": lambda n: _fused(n, "QuickGelu", _rows(n), alpha=1.0),
    "FusedMatMul": lambda n: _fused(n, "FusedMatMul", _rows(n), n.draw(8, 16)),
    "FusedMatMul, weight transposed": lambda n: _fused(
        n, "FusedMatMul", _rows(n), n.draw(16, 8), transB=1, alpha=0.5
    ),
    "FusedMatMul, input transposed": lambda n: _fused(
        n, "FusedMatMul", _rows(n), n.draw(6, 5), transA=1
    ),
    "FusedMatMul behind another": _heads,
    "SkipLayerNormalization": lambda n: _norm(n, n.draw(8), n.draw(8), epsilon=1e-5),
    "SkipLayerNormalization without shift": _norm,
    "FusedConv": lambda n: _conv(n, n.draw(8), activation="Relu"),
    "FusedConv with a sum": lambda n: _conv(n, n.draw(8), n.draw(1, 8, 4, 4), activation="Relu"),
    "FusedConv, Clip": lambda n: _conv(n, activation="Clip", activation_params=[-0.1, 0.3]),
    "FusedConv, LeakyRelu": lambda n: _conv(n, activation="LeakyRelu", activation_params=[0.2]),
    "FusedConv, HardSigmoid": lambda n: _conv(
        n, activation="HardSigmoid", activation_params=[0.3, 0.4]
    ),
    "FusedGemm": lambda n: _fused(
        n, "FusedGemm", n.input("x", 3, 8), n.draw(16, 8), n.draw(16), transB=1, activation="Relu"
    ),
    "Attention": _attention,
    "Attention, its scale": lambda n: _attention(n, scale=0.3),
}


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("name", FORMS)
def test_written_out_it_computes_the_same(name: str, opset: int) -> None:
    net = Net(opset)
    proto = net.proto(FORMS[name](net))
    written = write_out(proto)
    assert not any(node.domain == DOMAIN for node in written.graph.node)
    assert any(map(is_fused, proto.graph.node))
    assert_equal(proto, written)


def test_a_half_file_that_stores_no_floats(tmp_path: Path) -> None:
    """In float32 between its Casts, it has half inputs alone to tell a type by."""
    net = Net()
    x = net.op("MaxPool", net.input("x", 2, 4, 8, 8, dtype=np.float16), kernel_shape=[2, 2])
    y = _fused(net, "QuickGelu", x, alpha=1.0)
    proto = net.proto(y)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(proto, tmp_path / "net.onnx")
    data = np.random.default_rng(0).standard_normal((4, 4, 8, 8)).astype(np.float16)
    result = optimize(tmp_path / "net.onnx", None, {"x": data}, precision="fp32", strict=True)
    assert not any(node.domain == DOMAIN for node in result.model.graph.node)


@pytest.mark.parametrize("name", ["unidirectional", "a mask"])
def test_a_form_that_is_not_known_stays_and_is_said(name: str, tmp_path: Path) -> None:
    net = Net()
    if name == "a mask":
        reads = [net.input("x", 2, 6, 8), net.draw(8, 24), net.draw(24)]
        mask = net.store(np.full(2, 6), "mask", np.int32)
        x = _fused(net, "Attention", *reads, mask, num_heads=2)
    else:
        x = _attention(net, unidirectional=1)
    y = net.op("MatMul", x, net.draw(8 if name == "a mask" else 16, 4))
    onnx.save(net.proto(y), tmp_path / "net.onnx")
    notes = inspect(tmp_path / "net.onnx").model.notes
    assert any("Attention of 'com.microsoft'" in note and "TensorRT" in note for note in notes)


def test_what_was_fused_is_quantized(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Add", net.op("MatMul", _attention(net), net.draw(16, 8)), net.draw(8))
    x = _fused(net, "SkipLayerNormalization", x, "x", net.positive(8), net.draw(8))
    x = _fused(net, "BiasGelu", net.op("MatMul", x, net.draw(8, 32)), net.draw(32))
    y = _fused(net, "FusedMatMul", x, net.draw(8, 32), transB=1)
    onnx.save(net.proto(y), tmp_path / "net.onnx")
    result = optimize(tmp_path / "net.onnx", tmp_path / "out.onnx", RandomSamples(4), strict=True)
    kinds = sorted(group.kind for group in result.plan.groups if group.is_quantized)
    # The attention itself has heads of 4, which no kernel fuses.
    assert kinds == ["Linear", "Linear", "LinearAct", "MHAInProjection"]
    assert not any(node.domain == DOMAIN for node in result.model.graph.node)
    assert not result.trace.undone()
