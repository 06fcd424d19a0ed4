"""Each rule of the linter, by planting what it forbids into a graph that is clean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from building import Net
from quantizing import node, pairs, quantized

from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE
from fusewright.quantize.lint import lint

Act = Callable[[Net, str], str]
ACTS: dict[str, Act] = {
    "leaky": lambda net, x: net.op("LeakyRelu", x, name="act"),
    # In EfficientNetV2's and YOLO's blocks the Act in front of the Add is SiLU.
    "silu": lambda net, x: net.op("Mul", x, net.op("Sigmoid", x)),
    "mish": lambda net, x: net.op("Mul", net.op("Tanh", net.op("Softplus", x)), x),
    "gelu": lambda net, x: net.op(
        "Mul", net.op("Mul", x, net.op("Add", net.op("Erf", net.op("Div", x, 2**0.5)), 1.0)), 0.5
    ),
    "hardswish": lambda net, x: net.op(
        "Div", net.op("Mul", x, net.op("Clip", net.op("Add", x, 3.0), 0.0, 6.0)), 6.0
    ),
}


def _graph(act: Act = ACTS["leaky"]) -> gs.Graph:
    """A stem, a residual, a Concat, an Act → Add and a classifier: everything that has pairs."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4), name="stem")
    y = net.op("Relu", net.op("Add", net.conv(x, 8, 8, name="residual/conv"), x), name="residual")
    z = net.op("Concat", net.op("Relu", net.conv(y, 8, 8), name="branch"), y, axis=1, name="concat")
    z = net.conv(net.op("MaxPool", z, kernel_shape=[2, 2], name="pool"), 8, 16, name="behind")
    z = net.op("Add", act(net, net.conv(z, 8, 8)), z, name="act_add")
    z = net.conv(z, 8, 8, name="last")
    flat = net.op("Flatten", net.op("GlobalAveragePool", z, name="global"))
    z = net.op("Gemm", flat, net.draw(8, 10))
    return quantized(net, net.op("Softmax", z, axis=1, name="softmax"))


def _named(graph: gs.Graph, name: str) -> gs.Node:
    (found,) = [n for n in graph.nodes if n.name == name]
    return found


def _pair_of(graph: gs.Graph, tensor: str) -> tuple[gs.Node, gs.Node]:
    (found,) = [p for p in pairs(graph) if p[0].inputs[0].name == tensor]
    return found


def _stored(name: str, value: float, dtype: type) -> gs.Constant:
    return gs.Constant(name, np.array(value, dtype))


def _new_pair(graph: gs.Graph, tensor: gs.Tensor, scale: float = 0.1) -> gs.Variable:
    step = _stored(f"{tensor.name}_new_scale", scale, np.float32)
    zero = _stored(f"{tensor.name}_new_zero", 0, np.int8)
    middle = gs.Variable(f"{tensor.name}_new_q", np.int8, tensor.shape)
    end = gs.Variable(f"{tensor.name}_new_dq", np.float32, tensor.shape)
    graph.nodes.append(gs.Node(QUANTIZE, "new_q", {}, [tensor, step, zero], [middle]))
    graph.nodes.append(gs.Node(DEQUANTIZE, "new_dq", {}, [middle, step, zero], [end]))
    return end


def _negative_scale(graph: gs.Graph) -> None:
    _pair_of(graph, "x")[0].inputs[1].values = np.array(-0.1, np.float32)


def _zero_scale_of_one_channel(graph: gs.Graph) -> None:
    scale = _named(graph, "last").inputs[1].inputs[0].inputs[1]
    scale.values = scale.values * np.float32([0] + [1] * 7)


def _computed_scale(graph: gs.Graph) -> None:
    _pair_of(graph, "x")[0].inputs[1] = gs.Variable("computed", np.float32, [])


def _asymmetric(graph: gs.Graph) -> None:
    _pair_of(graph, "x")[0].inputs[2] = _stored("three", 3, np.int8)


def _unsigned(graph: gs.Graph) -> None:
    _pair_of(graph, "x")[0].inputs[2] = _stored("unsigned", 0, np.uint8)


def _no_zero_point(graph: gs.Graph) -> None:
    del _pair_of(graph, "x")[0].inputs[2]


def _other_scale_behind(graph: gs.Graph) -> None:
    _pair_of(graph, "x")[1].inputs[1] = _stored("other", 0.3, np.float32)


def _other_axis_behind(graph: gs.Graph) -> None:
    _named(graph, "last").inputs[1].inputs[0].attrs["axis"] = 1


def _second_pair(graph: gs.Graph) -> None:
    act = _pair_of(graph, "residual_y")[0].inputs[0]
    _named(graph, "residual/conv").inputs[0] = _new_pair(graph, act)


def _twice(graph: gs.Graph) -> None:
    end = _pair_of(graph, "x")[1].outputs[0]
    (reader,) = end.outputs
    reader.inputs[0] = _new_pair(graph, end)


def _integers(graph: gs.Graph) -> None:
    _new_pair(graph, gs.Variable("shape", np.int64, [2]))


def _output(graph: gs.Graph) -> None:
    graph.outputs = [_new_pair(graph, graph.outputs[0])]


def _weight_without_activation(graph: gs.Graph) -> None:
    conv = _named(graph, "last")
    conv.inputs[0] = conv.inputs[0].inputs[0].inputs[0].inputs[0].inputs[0]


def _activation_without_weight(graph: gs.Graph) -> None:
    conv = _named(graph, "last")
    conv.inputs[1] = conv.inputs[1].inputs[0].inputs[0].inputs[0].inputs[0]


def _bias(graph: gs.Graph) -> None:
    conv = _named(graph, "last")
    conv.inputs[2] = _new_pair(graph, conv.inputs[2])


def _concat_of_two_scales(graph: gs.Graph) -> None:
    for q_or_dq in _pair_of(graph, "branch_y"):
        q_or_dq.inputs[1] = _stored("branch_scale", 0.7, np.float32)


def _concat_of_float_and_int8(graph: gs.Graph) -> None:
    concat = _named(graph, "concat")
    concat.inputs[0] = concat.inputs[0].inputs[0].inputs[0].inputs[0].inputs[0]


def _one_sided_act_add(graph: gs.Graph) -> None:
    conv = _named(graph, "last")
    conv.inputs[0] = conv.inputs[0].inputs[0].inputs[0].inputs[0].inputs[0]
    conv.inputs[1] = conv.inputs[1].inputs[0].inputs[0].inputs[0].inputs[0]


def _one_sided_softmax(graph: gs.Graph) -> None:
    softmax = _named(graph, "softmax")
    softmax.inputs[0] = _new_pair(graph, softmax.inputs[0])


def _shape_of_a_dequantized_map(graph: gs.Graph) -> None:
    end = _pair_of(graph, "x")[1].outputs[0]
    graph.nodes.append(gs.Node("Shape", "shape", {}, [end], [gs.Variable("size", np.int64, [4])]))


PLANTED: dict[Callable[[gs.Graph], None], str] = {
    _negative_scale: "a scale that is not positive",
    _zero_scale_of_one_channel: "a scale that is not positive",
    _computed_scale: "a scale that is not positive",
    _asymmetric: "a zero-point other than 0 of INT8",
    _unsigned: "a zero-point other than 0 of INT8",
    _no_zero_point: "a zero-point other than 0 of INT8",
    _other_scale_behind: "another scale or axis",
    _other_axis_behind: "another scale or axis",
    _second_pair: "is one of 2 pairs of tensor 'residual_y'",
    _twice: "quantizes what was quantized already",
    _integers: "quantizes a tensor of type int64",
    _output: "which is quantized",
    _weight_without_activation: "Conv 'last' has a pair on one of its two operands",
    _activation_without_weight: "Conv 'last' has a pair on one of its two operands",
    _bias: "Conv 'last' has a quantized bias",
    _concat_of_two_scales: "Concat 'concat' has inputs of different scales",
    _concat_of_float_and_int8: "Concat 'concat' has a pair on some of its inputs only",
    _one_sided_act_add: "Add 'act_add' reads INT8 and writes float",
    _one_sided_softmax: "Softmax 'softmax' reads INT8 and writes float",
    _shape_of_a_dequantized_map: "Shape 'shape' reads INT8 and writes float",
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_what_fusewright_makes_is_clean(act: Act) -> None:
    graph = _graph(act)
    assert node(graph, "Concat").name == "concat"
    assert lint(graph) == []


@pytest.mark.parametrize("op", ["Shape", "Size"])
def test_asking_for_the_size_of_what_a_pair_moved_through_is_clean(op: str) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4))
    y = net.op("Transpose", x, perm=[0, 1, 3, 2])
    graph = quantized(net, net.conv(y, 8, 8), net.op(op, y, name="ask"))
    assert _named(graph, "ask").inputs[0].inputs[0].inputs[0].inputs[0].op == DEQUANTIZE
    assert lint(graph) == []


def test_act_added_to_its_own_input_is_clean() -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 4, 8, 8), 4, 4)
    y = net.conv(net.op("Add", net.op("Relu", x), x), 4, 4)
    assert lint(quantized(net, y)) == []


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_one_sided_act_add_is_found_behind_every_act(act: Act) -> None:
    graph = _graph(act)
    _one_sided_act_add(graph)
    assert any("Add 'act_add' reads INT8 and writes float" in found.text for found in lint(graph))


@pytest.mark.parametrize("plant", PLANTED, ids=lambda f: f.__name__.strip("_"))
def test_planted_violation_is_found(plant: Callable[[gs.Graph], None]) -> None:
    graph = _graph()
    plant(graph)
    found = lint(graph)
    assert any(PLANTED[plant] in one.text for one in found), found
    assert all("\n" not in one.text for one in found)


def test_pairs_on_both_sides_of_an_op_without_weights_are_clean() -> None:
    graph = _graph()
    pool = _named(graph, "global")
    pool.inputs[0] = _new_pair(graph, pool.inputs[0])
    assert lint(graph) == []
