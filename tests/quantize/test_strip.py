"""Pairs of other tools are taken out whole; what is no pair is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from building import Net, run
from onnx import helper, numpy_helper

from fusewright import strip_qdq
from fusewright.errors import ModelError
from fusewright.quantize.existing import count_qdq

X = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
STEP = np.float32(0.05)
WEIGHT = np.random.default_rng(2).integers(-128, 128, (4, 3, 3, 3))
SCALES = np.linspace(0.01, 0.04, 4, dtype=np.float32)
INT8 = np.int8(0)


def _constant(net: Net, array: Any) -> str:
    return net.op("Constant", value=numpy_helper.from_array(np.asarray(array)))


def _conv(net: Net, x: str, weight: str) -> str:
    return net.op("Conv", x, weight)


def _weight(net: Net, stored: np.ndarray, zero: np.ndarray | None = None) -> str:
    zero = np.zeros(4, stored.dtype) if zero is None else zero
    return net.op("DequantizeLinear", stored, SCALES, zero, axis=0)


def _expected(stored: np.ndarray, zero: np.ndarray | int = 0) -> np.ndarray:
    moved = stored.astype(np.float64) - np.reshape(zero, (-1, 1, 1, 1))
    return (moved * SCALES.reshape(4, 1, 1, 1)).astype(np.float32)


def _qcdq(net: Net, x: str) -> str:
    q = net.op("Clip", net.op("QuantizeLinear", x, STEP, INT8), np.int8(-8), np.int8(7))
    x = net.op("DequantizeLinear", q, STEP, INT8)
    w = net.op("Clip", WEIGHT.astype(np.int8), np.int8(-8), np.int8(7))
    w = net.op("DequantizeLinear", w, SCALES, np.zeros(4, np.int8), axis=0)
    return _conv(net, x, w)


def _clipped_below(net: Net, x: str) -> str:
    """A narrow range of stored values has its own Constants, and no upper bound."""
    w = net.op("Clip", WEIGHT.astype(np.int8), _constant(net, np.int8(-127)))
    w = net.op("DequantizeLinear", w, _constant(net, SCALES), axis=0)
    return _conv(net, x, w)


def _moved(net: Net, x: str) -> str:
    q = net.op("QuantizeLinear", x, STEP, INT8)
    q = net.op("Transpose", net.op("Reshape", q, [2, 3, 64]), perm=[0, 2, 1])
    x = net.op("DequantizeLinear", q, STEP, INT8)
    return net.op("MatMul", x, np.eye(3, dtype=np.float32))


def _moved_weight(net: Net, x: str) -> str:
    w = net.op("Transpose", WEIGHT.astype(np.int8), perm=[0, 1, 3, 2])
    return _conv(net, x, net.op("DequantizeLinear", w, np.float32(0.02), INT8))


def _of_type(dtype: Any, zero: int = 0) -> Callable[[Net, str], str]:
    def build(net: Net, x: str) -> str:
        stored = (np.abs(WEIGHT) if np.dtype(dtype).kind == "u" else WEIGHT).astype(dtype)
        return _conv(net, x, _weight(net, stored, np.full(4, zero, dtype)))

    return build


def _float8(net: Net, x: str) -> str:
    return _conv(net, x, _weight(net, (WEIGHT / 64).astype(ml_dtypes.float8_e4m3fn)))


def _bias(net: Net, x: str) -> str:
    b = net.op("DequantizeLinear", np.arange(4, dtype=np.int32) * 70000, np.float32(1e-5))
    return net.op("Conv", x, WEIGHT.astype(np.float32), b)


def _twin(weight: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A float convolution with these weights."""

    def compute(x: np.ndarray) -> np.ndarray:
        net = Net()
        output = _conv(net, net.input("x", 2, 3, 8, 8), weight)
        return run(net.proto(output), {"x": x})[0]

    return compute


NARROW = _expected(np.clip(WEIGHT, -8, 7))
FORMS: dict[str, tuple[Callable[[Net, str], str], Callable[[np.ndarray], np.ndarray]]] = {
    "QCDQ (Brevitas)": (_qcdq, _twin(NARROW)),
    "a Clip without upper bound": (_clipped_below, _twin(_expected(np.maximum(WEIGHT, -127)))),
    "moves between the two": (_moved, lambda x: x.reshape(2, 3, 64).transpose(0, 2, 1)),
    "a stored weight that is moved": (
        _moved_weight,
        _twin((WEIGHT.transpose(0, 1, 3, 2) * np.float64(np.float32(0.02))).astype(np.float32)),
    ),
    "UINT8 with zero points": (_of_type(np.uint8, 37), _twin(_expected(np.abs(WEIGHT), 37))),
    "INT16": (_of_type(np.int16), _twin(_expected(WEIGHT))),
    "UINT16": (_of_type(np.uint16, 9), _twin(_expected(np.abs(WEIGHT), 9))),
    "FP8": (
        _float8,
        _twin(_expected((WEIGHT / 64).astype(ml_dtypes.float8_e4m3fn).astype(np.float32))),
    ),
}


def _proto(build: Callable[[Net, str], str]) -> onnx.ModelProto:
    net = Net(opset=21)
    return net.proto(build(net, net.input("x", 2, 3, 8, 8)))


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    build, expected = FORMS[name]
    stripped = strip_qdq(_proto(build))
    assert count_qdq(stripped) == 0
    assert not {"Clip", "Constant"} & {node.op_type for node in stripped.graph.node}
    np.testing.assert_allclose(run(stripped, {"x": X})[0], expected(X), rtol=1e-5, atol=1e-4)


def test_a_bias_in_int32() -> None:
    proto = _proto(_bias)
    stripped = strip_qdq(proto)
    assert count_qdq(stripped) == 0
    np.testing.assert_allclose(run(stripped, {"x": X})[0], run(proto, {"x": X})[0], rtol=1e-6)


def test_a_clip_of_float_values_stays() -> None:
    def build(net: Net, x: str) -> str:
        q = net.op("QuantizeLinear", net.op("Clip", x, np.float32(0), np.float32(1)), STEP, INT8)
        return net.op("Clip", net.op("DequantizeLinear", q, STEP, INT8), np.float32(0.1))

    assert [node.op_type for node in strip_qdq(_proto(build)).graph.node] == ["Clip", "Clip"]


def test_pairs_in_a_local_function() -> None:
    net = Net(opset=21)
    x = net.input("x", 2, 3, 8, 8)
    proto = net.proto(net.op("Fake", x, STEP, INT8, domain="qat"))
    body = [
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("Clip", ["q"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 21)]
    function = helper.make_function("qat", "Fake", ["a", "s", "z"], ["b"], body, opsets)
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("qat", 1))
    stripped = strip_qdq(proto)
    assert count_qdq(stripped) == 0
    np.testing.assert_array_equal(run(stripped, {"x": X})[0], X)


def _integers(net: Net, x: str) -> str:
    q = net.op("QuantizeLinear", x, STEP, INT8)
    w, ws = WEIGHT.astype(np.int8), np.float32(0.02)
    q = net.op("QLinearConv", q, STEP, INT8, w, ws, INT8, np.float32(2), INT8)
    return net.op("DequantizeLinear", q, np.float32(2), INT8)


def _computed_scale(net: Net, x: str) -> str:
    scale = net.op("ReduceMax", net.op("Abs", x), keepdims=0)
    return _conv(net, x, net.op("DequantizeLinear", WEIGHT.astype(np.int8), scale))


def _scales_of_moved_axis(net: Net, x: str) -> str:
    w = net.op("Transpose", WEIGHT.astype(np.int8), perm=[0, 1, 3, 2])
    return _conv(net, x, net.op("DequantizeLinear", w, SCALES, np.zeros(4, np.int8), axis=0))


LEFT = {
    "QLinearConv": _integers,
    "DequantizeLinear": _computed_scale,
    "DequantizeLinear ": _scales_of_moved_axis,
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_pair_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name.strip()} '.*' stays"):
        strip_qdq(_proto(LEFT[name]))
