"""Weights computed once are, bit for bit, what onnxruntime computes in every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net
from onnx import TensorProto

from fusewright.graph.session import open_session, run_session
from fusewright.verify.weights import with_computed_weights

SHAPE = (64, 16, 3, 3)


def _pair(net: Net, x: str, scale: np.ndarray, *, back: np.ndarray | None = None) -> str:
    axis = {"axis": 0} if scale.ndim else {}
    zero = net.store(np.zeros(scale.shape, np.int8), dtype=None)
    y = net.op("QuantizeLinear", x, net.store(scale), zero, **axis)
    back = scale if back is None else back
    return net.op("DequantizeLinear", y, net.store(back), zero, **axis)


def _values(net: Net) -> np.ndarray:
    """Many on the border between two steps, some that saturate."""
    codes = net.random.integers(-300, 300, SHAPE) / 2
    return (codes * 0.0625).astype(np.float32)


def _per_tensor(net: Net) -> str:
    return _pair(net, net.store(_values(net)), np.float32(0.0625))


def _per_channel(net: Net) -> str:
    scales = net.random.uniform(1e-3, 0.1, SHAPE[0]).astype(np.float32)
    return _pair(net, net.store(net.random.standard_normal(SHAPE).astype(np.float32)), scales)


def _half(net: Net) -> str:
    """As a rounding twin has it: stored in half, and rounded to half behind the pair."""
    weight = net.store(net.random.standard_normal(SHAPE).astype(np.float16), dtype=None)
    scales = net.random.uniform(1e-3, 0.1, SHAPE[0]).astype(np.float16).astype(np.float32)
    scales = net.op("Cast", net.store(scales.astype(np.float16), dtype=None), to=TensorProto.FLOAT)
    zero = net.store(np.zeros(SHAPE[0], np.int8), dtype=None)
    y = net.op("Cast", weight, to=TensorProto.FLOAT)
    y = net.op("QuantizeLinear", y, scales, zero, axis=0)
    y = net.op("DequantizeLinear", y, scales, zero, axis=0)
    return net.op("Cast", net.op("Cast", y, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)


def _model(weight: str, net: Net) -> onnx.ModelProto:
    return net.proto(net.op("Mul", net.input("x", 1), weight))


@pytest.mark.parametrize("make", [_per_tensor, _per_channel, _half])
def test_bit_for_bit(make, tmp_path: Path) -> None:
    net = Net(19)
    model = _model(make(net), net)
    before = model.SerializeToString()
    made = with_computed_weights(model, tmp_path, tmp_path / "w.bin")
    assert model.SerializeToString() == before
    left = [node.op_type for node in made.graph.node]
    assert left == (["Cast", "Mul"] if make is _half else ["Mul"]), "but for the Cast of a scale"
    onnx.save(made, tmp_path / "made.onnx")
    feed = {"x": np.ones(1, np.float32)}
    (found,) = run_session(open_session(tmp_path / "made.onnx"), feed)
    (expected,) = run_session(open_session(before), feed)
    assert np.array_equal(found, expected)


def _read_in_the_middle(net: Net) -> tuple[onnx.ModelProto, list[str]]:
    weight = net.store(_values(net))
    step, zero = net.store(np.float32(0.0625)), net.store(np.int8(0), dtype=None)
    q = net.op("QuantizeLinear", weight, step, zero)
    y = net.op("Mul", net.op("DequantizeLinear", q, step, zero), net.input("x", 1))
    return net.proto(y, q), ["QuantizeLinear", "DequantizeLinear", "Mul"]


def _zero_point(net: Net) -> tuple[onnx.ModelProto, list[str]]:
    weight = net.store(_values(net))
    step, zero = net.store(np.float32(0.0625)), net.store(np.int8(3), dtype=None)
    q = net.op("QuantizeLinear", weight, step, zero)
    y = net.op("Mul", net.op("DequantizeLinear", q, step, zero), net.input("x", 1))
    return net.proto(y), ["QuantizeLinear", "DequantizeLinear", "Mul"]


def _activation(net: Net) -> tuple[onnx.ModelProto, list[str]]:
    return net.proto(_pair(net, net.input("x", *SHAPE), np.float32(0.1))), [
        "QuantizeLinear",
        "DequantizeLinear",
    ]


@pytest.mark.parametrize("make", [_read_in_the_middle, _zero_point, _activation])
def test_what_stays(make, tmp_path: Path) -> None:
    model, ops = make(Net(19))
    made = with_computed_weights(model, tmp_path, tmp_path / "w.bin")
    assert [node.op_type for node in made.graph.node] == ops
