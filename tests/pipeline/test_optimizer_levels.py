"""Results give the same figure at every optimization level of onnxruntime.

Each net is one that came out wrong, or did not open, with onnxruntime 1.32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from building import Net, run

import fusewright

_LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
_SAMPLES = 8


def _shape(*trailing: int) -> tuple[int, ...]:
    return (1, *trailing)


def _convs(
    opset: int = 17, channels: float = 1.0, narrow: float = 1.0, op: str = "Conv", act: str = ""
) -> Net:
    """Three convolutions, every third channel of whose weights is multiplied by `channels`."""
    net = Net(opset)
    x = net.op("Mul", net.input("x", *_shape(8, 8, 8)), narrow)
    for _ in range(3):
        weight = net.stored[net.draw(8, 8, 3, 3)]
        weight[::3] *= channels
        x = net.op(op, x, weight, net.positive(8), pads=[1, 1, 1, 1])
        x = net.op(act, x) if act else x
        x = net.op("Mul", x, narrow) if narrow != 1.0 else x
    return _ending(net, x)


def _behind_reshape() -> Net:
    """A pair in front of a Reshape (MiniFASNet), a Linear with dead channels behind."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 8, 4, 4), 8, 8))
    x = net.op("Reshape", x, [1, 128])
    weight = net.stored[net.draw(128, 64)]
    weight[:, ::3] *= 1e-9
    x = net.op("Add", net.op("MatMul", x, weight), net.positive(64))
    return _ending(net, net.op("MatMul", x, net.draw(64, 64)))


def _linears(opset: int = 17, channels: float = 1.0, narrow: float = 1.0, act: str = "") -> Net:
    net = Net(opset)
    x = net.op("Mul", net.input("x", *_shape(4, 64)), narrow)
    for _ in range(3):
        weight = net.stored[net.draw(64, 64)]
        weight[:, ::3] *= channels
        x = net.op("Add", net.op("MatMul", x, weight), net.positive(64))
        x = net.op(act, x) if act else x
    return _ending(net, x)


def _clipped(opset: int = 19, op: str = "MatMul", pool: bool = False) -> Net:
    net = Net(opset)
    if op == "MatMul":
        x = net.op("Sigmoid", net.input("x", *_shape(4, 32)))
        return _ending(net, net.op("MatMul", net.op("Clip", x, 0.1, 0.6), net.draw(32, 32)))
    x = net.op("Relu", net.op("Neg", net.input("x", *_shape(8, 8, 8))))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]) if pool else x
    return _ending(net, net.conv(x, 8, 8))


def _moved(opset: int, norm: str = "") -> Net:
    """Reshape, Transpose, Reshape in front of a Linear, which a pair moves up through."""
    net = Net(opset)
    x = net.input("x", *_shape(4, 32))
    if norm == "RMSNormalization":
        x = net.op(norm, x, net.positive(32), axis=-1)
    elif norm:
        x = net.op(norm, x)
    x = net.op("Transpose", net.op("Reshape", x, [1, 4, 8, 4]), perm=[0, 1, 3, 2])
    x = net.op("MatMul", net.op("Reshape", x, [1, 4, 32]), net.draw(32, 32))
    return _ending(net, net.op("MatMul", net.op("Relu", x), net.draw(32, 32)))


def _channels_last() -> Net:
    """A residual convolution between Transposes; a pair moves up through the first."""
    net = Net(17)
    x = net.op("Transpose", net.input("x", *_shape(8, 8, 4)), perm=[0, 3, 1, 2])
    x = net.op("Selu", net.op("Add", net.conv(x, 4, 4), x))
    return _ending(net, net.op("Transpose", x, perm=[0, 2, 3, 1]))


def _ending(net: Net, x: str) -> Net:
    net.op("Identity", x, name="end")
    return net


_KINDS: list[tuple[str, Callable[[], Net], tuple[str, ...]]] = [
    ("dead channels", lambda: _convs(channels=1e-9), ("int8", "int8+fp16", "fp8", "fp8+fp16")),
    ("dead, Relu", lambda: _convs(channels=1e-9, act="Relu"), ("int8", "int8+fp16")),
    ("narrow", lambda: _convs(narrow=0.02), ("int8", "int8+fp16", "fp8+fp16")),
    ("dead, up", lambda: _convs(channels=1e-9, op="ConvTranspose"), ("int8", "int8+fp16")),
    ("narrow, up", lambda: _convs(narrow=0.02, op="ConvTranspose"), ("int8", "int8+fp16")),
    ("dead Linear", lambda: _linears(channels=1e-9), ("int8", "int8+fp16", "fp8+fp16")),
    ("dead Linear, Relu", lambda: _linears(channels=1e-9, act="Relu"), ("int8", "int8+fp16")),
    ("narrow Linear", lambda: _linears(narrow=1e-3), ("int8", "int8+fp16")),
    ("dead, Reshape", _behind_reshape, ("int8", "int8+fp16")),
    ("Linear", lambda: _linears(act="Tanh"), ("int8+fp16", "int4", "int4+fp16", "fp8+fp16")),
    ("Clip", _clipped, ("fp8", "fp8+fp16")),
    ("Relu", lambda: _clipped(op="Conv"), ("fp8", "fp8+fp16", "int8", "int8+fp16")),
    ("Relu, MaxPool", lambda: _clipped(op="Conv", pool=True), ("fp8", "fp8+fp16")),
    ("Transposes", _channels_last, ("fp8", "fp8+fp16", "int8", "int8+fp16")),
    ("opset 21", lambda: _moved(21), ("int8", "int8+fp16")),
    ("opset 22", lambda: _moved(22), ("int8", "int8+fp16", "fp8")),
    ("opset 24", lambda: _moved(24, "Swish"), ("int8", "int8+fp16")),
    ("opset 23, norm", lambda: _moved(23, "RMSNormalization"), ("int8", "int8+fp16")),
    ("opset 21, Linears", lambda: _linears(opset=21), ("int8", "int8+fp16")),
]


def _run(model: Path, level: str, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


@pytest.mark.parametrize(
    ("net", "precision"),
    [
        pytest.param(net, precision, id=f"{name}-{precision}")
        for name, net, precisions in _KINDS
        for precision in precisions
    ],
)
def test_every_level(net: Callable[[], Net], precision: str, tmp_path: Path) -> None:
    _same_at_every_level(net(), tmp_path, precision=precision)


@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
def test_one_scale_of_a_whole_weight(precision: str, tmp_path: Path) -> None:
    net = _moved(23, "RMSNormalization")
    _same_at_every_level(net, tmp_path, precision=precision, per_tensor_weights=True)


def _same_at_every_level(net: Net, tmp_path: Path, **options: Any) -> None:
    proto = net.proto("end_y")
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    random = np.random.default_rng(0)
    data = [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(_SAMPLES)]
    onnx.save(proto, tmp_path / "net.onnx")
    out = tmp_path / "out.onnx"
    result = fusewright.optimize(tmp_path / "net.onnx", out, data, smooth="off", **options)
    assert any(group.is_quantized for group in result.plan.groups)
    (expected,) = run(proto, data[0])
    plain = _apart(expected, _run(out, "ORT_DISABLE_ALL", data[0]))
    assert plain < 0.2
    for level in _LEVELS[1:]:
        assert _apart(expected, _run(out, level, data[0])) < 1.5 * plain + 1e-3, level


@pytest.mark.parametrize(
    ("net", "opset"),
    [(_moved(21), 20), (_moved(24), 20), (_moved(23, "RMSNormalization"), 23), (_moved(20), 20)],
    ids=["21", "24", "norm of 23", "20"],
)
def test_an_opset_that_nothing_needs_is_lowered(net: Net, opset: int, tmp_path: Path) -> None:
    onnx.save(net.proto("end_y"), tmp_path / "net.onnx")
    data = {"x": np.random.default_rng(0).standard_normal((4, 4, 32)).astype(np.float32)}
    result = fusewright.optimize(tmp_path / "net.onnx", calibration=data, precision="int8")
    versions = {entry.domain: entry.version for entry in result.model.opset_import}
    assert versions[""] == opset
    assert {entry.version for f in result.model.functions for entry in f.opset_import} <= {opset}
    onnx.checker.check_model(result.model)


def _notes(net: Net, precision: str, folder: Path, out: bool = True) -> list[str]:
    proto = net.proto("end_y")
    onnx.save(proto, folder / "net.onnx")
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    data = {"x": np.random.default_rng(0).standard_normal((8, *shape[1:])).astype(np.float32)}
    result = fusewright.optimize(
        folder / "net.onnx", folder / "o.onnx" if out else None, data, precision=precision
    )
    return [note for note in result.notes if "onnxruntime" in note]


def test_what_the_optimizer_spoils_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _notes(_convs(channels=1e-9), "int8", tmp_path) == []
    monkeypatch.setattr("fusewright.pipeline.quantizing._keep_from_optimizer", lambda *_: None)
    (note,) = _notes(_convs(channels=1e-9), "int8", tmp_path)
    assert "disabled_optimizers=['WeightBiasQuantization']" in note
    assert _notes(_convs(channels=1e-9), "int8", tmp_path, out=False) == []  # no file to open


def test_bf16_is_told_to_run_in_tensorrt(tmp_path: Path) -> None:
    (note,) = _notes(_convs(), "int8+bf16", tmp_path)
    assert "has no kernels for BF16" in note
