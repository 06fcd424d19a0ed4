"""The twin computes in float32 what a half model would, rounding behind every operator."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from building import Net, run
from halving import halved, naive
from onnx import TensorProto, helper
from test_overflow_models import sum_of_squares

from fusewright.precision import overflows, rounding_twin
from fusewright.precision.twin import half_tensors

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def _x(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", TYPES)
def test_against_numpy(kind: str) -> None:
    def half(array: np.ndarray) -> np.ndarray:
        return array.astype(TYPES[kind]).astype(np.float32)

    net = Net(22)
    weight, bias = _x(8, 8), _x(8)
    y = net.op("MatMul", net.input("x", 4, 8), net.store(weight))
    y = net.op("Mul", net.op("Add", y, bias), net.op("Sigmoid", y))
    found = halved(net, y, kind=kind)
    x = _x(4, 8)
    first = half(half(x) @ half(weight))
    gate = half(1 / (1 + np.exp(-first)))
    expected = half(half(first + half(bias)) * gate)
    (actual,) = run(rounding_twin(found.after), {"x": x})
    # One unit in the last place, where float32 sums come in another order.
    np.testing.assert_allclose(actual, expected, 2.0 ** (-9 if kind == "fp16" else -6), 1e-5)
    assert np.mean(actual == expected) > 0.9
    assert (half(actual) == actual).all()
    (plain,) = run(found.before, {"x": x})
    assert not np.array_equal(plain, actual)


def test_every_computed_half_tensor_is_rounded() -> None:
    net = Net()
    y = net.op("Softmax", net.op("MatMul", net.input("x", 4, 8), net.draw(8, 8)))
    y = net.op("Reshape", net.op("Tanh", net.op("Transpose", y, perm=[1, 0])), [4, 8])
    found = halved(net, net.op("MatMul", y, net.draw(8, 8)))
    rounded = half_tensors(rounding_twin(found.after))
    made = {o: n.op_type for n in found.after.graph.node for o in n.output}
    assert sorted(made[name] for name in rounded) == ["Cast", "MatMul", "MatMul", "Softmax", "Tanh"]


def test_calls_are_inlined() -> None:
    info, node = helper.make_tensor_value_info, helper.make_node
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("own", 1)]
    body = helper.make_function(
        "own", "F", ["a", "b"], ["y"],
        [node("MatMul", ["a", "b"], ["m"]), node("Tanh", ["m"], ["y"])], opsets[:1],
    )  # fmt: skip
    weight = onnx.numpy_helper.from_array(_x(8, 8).astype(np.float16), "w")
    graph = helper.make_graph(
        [
            node("Cast", ["x"], ["h"], to=HALF),
            node("F", ["h", "w"], ["z"], domain="own"),
            node("Cast", ["z"], ["out"], to=FLOAT),
        ],
        "g", [info("x", FLOAT, [4, 8])], [info("out", FLOAT, [4, 8])], [weight],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=9)
    kept = proto.SerializeToString()
    twin = rounding_twin(proto)
    assert proto.SerializeToString() == kept
    assert not twin.functions
    assert len(half_tensors(twin)) == 3
    x = _x(4, 8)
    (y,) = run(twin, {"x": x})
    product = (x.astype(np.float16).astype(np.float32) @ _half(_x(8, 8))).astype(np.float16)
    np.testing.assert_allclose(y, _half(np.tanh(product.astype(np.float32))), rtol=2.0**-9)


def _half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16).astype(np.float32)


def _half_branches() -> onnx.ModelProto:
    """A half model with half subgraphs, a half interface and a Constant node."""
    info, node = helper.make_tensor_value_info, helper.make_node
    third = helper.make_tensor("third", HALF, [1], np.float16([1 / 3]).view(np.uint16), raw=False)

    def branch(name: str, op: str) -> onnx.GraphProto:
        nodes = [
            node("Constant", [], [f"{name}c"], value=third),
            node(op, ["x", f"{name}c"], [name]),
        ]
        return helper.make_graph(nodes, name, [], [info(name, HALF, [4])])

    zero = onnx.numpy_helper.from_array(np.float16(0), "zero")
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["flag"]),
        node("If", ["flag"], ["y"], then_branch=branch("a", "Mul"), else_branch=branch("b", "Add")),
    ]
    graph = helper.make_graph(nodes, "g", [info("x", HALF, [4])], [info("y", HALF, [4])], [zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize("sign", [1, -1])
def test_half_subgraphs(sign: int) -> None:
    proto = _half_branches()
    x = (sign * np.abs(_x(4))).astype(np.float16)
    (expected,) = run(proto, {"x": x})
    (wide,) = run(rounding_twin(proto), {"x": x.astype(np.float32)})
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide.astype(np.float16), expected)
    np.testing.assert_array_equal(wide, wide.astype(np.float16))
    (narrow,) = run(rounding_twin(proto, ("x", "y")), {"x": x})
    assert narrow.dtype == np.float16
    np.testing.assert_array_equal(narrow, expected)


def test_pairs_with_half_scales() -> None:
    net = Net(19)
    zero, step = net.store(0, "zero", np.int8), net.store(0.03, "step")
    y = net.op("MatMul", net.input("x", 4, 8), net.draw(8, 8))
    y = net.op("DequantizeLinear", net.op("QuantizeLinear", y, step, zero), step, zero)
    found = halved(net, net.op("MatMul", y, net.draw(8, 8)))
    x = _x(4, 8)
    first, second = (found.before.graph.initializer[i] for i in (2, 3))
    weights = [_half(onnx.numpy_helper.to_array(t)) for t in (first, second)]
    scale = np.float32(np.float16(0.03))
    codes = np.clip(np.rint(_half(_half(x) @ weights[0]) / scale), -128, 127)
    (actual,) = run(rounding_twin(found.after), {"x": x})
    np.testing.assert_allclose(actual, _half(_half(codes * scale) @ weights[1]), atol=2e-3)


def test_the_range_check_names_what_overflows() -> None:
    net = Net()
    found = halved(net, sum_of_squares(net))
    assert overflows(rounding_twin(found.after), found.samples) == ()
    broken = overflows(naive(found.before), found.samples)
    made = {o: n.op_type for n in found.before.graph.node for o in n.output}
    assert [made[name] for name in broken] == ["Mul", "ReduceSum", "Add", "Sqrt"]


def test_a_mask_of_minus_infinity_is_no_overflow() -> None:
    net = Net()
    x = net.input("x", 4, 8)
    mask = np.triu(np.full((4, 8), -np.inf, np.float32), 3)
    found = halved(net, net.op("Softmax", net.op("Add", x, mask)))
    assert overflows(rounding_twin(found.after), found.samples) == ()
