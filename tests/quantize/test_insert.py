"""Pairs in, pairs out: nothing else of the graph changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net, feeds, run
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizing import pairs, planned, quantized, thresholds

from fusewright.graph.convert import to_proto
from fusewright.quantize.existing import count_qdq
from fusewright.quantize.insert import insert_qdq
from fusewright.quantize.lint import lint
from fusewright.quantize.placement import place
from fusewright.quantize.strip import strip_qdq


def _residual(net: Net, x: str) -> str:
    return net.op("Relu", net.op("Add", net.conv(net.op("Relu", net.conv(x, 8, 8)), 8, 8), x))


def _concat(net: Net, x: str) -> str:
    y = net.op("Concat", net.op("Relu", net.conv(x, 8, 8)), x, axis=1)
    return net.conv(net.op("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4), 8, 16)


def _act_add(net: Net, x: str) -> str:
    return net.conv(net.op("Add", net.op("LeakyRelu", net.conv(x, 8, 8)), x), 8, 8)


def _leak(net: Net, x: str) -> str:
    y = net.conv(x, 8, 8)
    return net.op("Mul", net.op("Exp", y), net.op("Tanh", y))


def _up(net: Net, x: str) -> str:
    up = net.op("ConvTranspose", x, net.draw(8, 8, 2, 2), strides=[2, 2])
    return net.op("Slice", net.op("Relu", up), [0, 0], [8, 8], [2, 3])


BLOCKS = (_residual, _concat, _act_add, _leak, _up)


def _net(blocks: list[int], linear: bool = True) -> tuple[Net, str]:
    net = Net()
    x = net.op("Relu", net.batchnorm(net.conv(net.input("x", 1, 8, 8, 8), 8, 8), 8))
    for block in blocks:
        x = BLOCKS[block](net, x)
    if linear:
        x = net.op("Gemm", net.op("Flatten", net.op("GlobalAveragePool", x)), net.draw(8, 5))
    return net, x


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(BLOCKS) - 1), max_size=3), st.booleans())
def test_strip_gives_the_float_graph_back_bit_for_bit(blocks: list[int], linear: bool) -> None:
    plan = planned(*_net(blocks, linear))
    before = to_proto(plan.model.graph).SerializeToString(deterministic=True)
    placement = place(plan)
    insert_qdq(plan.model.graph, placement, thresholds(placement))
    assert not lint(plan.model.graph)
    count = len(placement.activations) + len(placement.weights)
    assert count_qdq(to_proto(plan.model.graph)) == 2 * count > 0
    # Through a file, as a user has it.
    graph = gs.import_onnx(to_proto(plan.model.graph))
    found = strip_qdq(graph)
    expected = {s.tensor for s in placement.activations} | {w.tensor for w in placement.weights}
    assert (len(found), set(found)) == (count, expected)
    stripped = to_proto(graph)
    assert count_qdq(stripped) == 0
    assert _content(stripped) == _content(onnx.ModelProto.FromString(before))


def _content(proto: onnx.ModelProto) -> tuple[object, ...]:
    graph = proto.graph
    stored = {t.name: (t.dims, t.data_type, t.raw_data) for t in graph.initializer}
    nodes = [n.SerializeToString(deterministic=True) for n in graph.node]
    return nodes, stored, list(graph.input), list(graph.output)


def test_pairs_stand_right_in_front_of_their_first_reader() -> None:
    graph = quantized(*_net([0, 1]))
    position = {id(n): i for i, n in enumerate(graph.nodes)}
    made = {id(t): i for i, n in enumerate(graph.nodes) for t in n.outputs}
    for node in graph.nodes:
        assert all(made.get(id(t), -1) < position[id(node)] for t in node.inputs)
    for q, dq in pairs(graph):
        assert position[id(dq)] == position[id(q)] + 1


def test_shared_scale_is_one_constant() -> None:
    graph = quantized(*_net([1]))
    of = {q.inputs[0].name: q.inputs[1] for q, _ in pairs(graph)}
    concat = next(n for n in graph.nodes if n.op == "Concat")
    sources = [t.inputs[0].inputs[0].inputs[0].inputs[0].name for t in concat.inputs]
    assert len({id(of[name]) for name in sources}) == 1


def test_the_scale_is_the_threshold_over_127() -> None:
    plan = planned(*_net([0]))
    placement = place(plan)
    given_thresholds = thresholds(placement)
    insert_qdq(plan.model.graph, placement, given_thresholds)
    of = {
        q.inputs[0].name: float(q.inputs[1].values)
        for q, _ in pairs(plan.model.graph)
        if "axis" not in q.attrs
    }
    for site in placement.activations:
        assert of[site.tensor] == pytest.approx(given_thresholds[site.scale] / 127, rel=1e-6)


def test_the_quantized_graph_computes_what_the_formula_says(tmp_path: Path) -> None:
    """One convolution by hand: float bias, weight and input rounded to their grids."""
    net = Net()
    proto = net.proto(net.conv(net.input("x", 1, 4, 5, 5), 3, 4, 1))
    plan = planned(net, proto.graph.output[0].name)
    placement = place(plan)
    insert_qdq(plan.model.graph, placement, {"x": 2.0})
    feed = feeds(proto)
    (weight, bias) = net.stored.values()
    step = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    rounded = np.rint(weight / step) * step
    grid = 2.0 / 127
    image = np.clip(np.rint(feed["x"] / grid), -128, 127) * grid
    expected = np.einsum("oc,nchw->nohw", rounded[:, :, 0, 0], image) + bias.reshape(1, -1, 1, 1)
    (actual,) = run(to_proto(plan.model.graph), feed)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def _stored_int8(dtype: type, zero: int, per_channel: bool) -> tuple[onnx.ModelProto, np.ndarray]:
    """A Q/DQ file of another tool: the weight is stored as integers, with no Q in front."""
    net = Net()
    random = np.random.default_rng(3)
    integers = random.integers(-100 if dtype == np.int8 else 0, 100, (4, 4, 1, 1)).astype(dtype)
    scale = random.uniform(0.01, 0.1, 4 if per_channel else ()).astype(np.float32)
    point = np.full(scale.shape, zero, dtype)
    attrs = {"axis": 0} if per_channel else {}
    kept = [net.store(a, dtype=a.dtype) for a in (integers, scale, point)]
    weight = net.op("DequantizeLinear", *kept, **attrs)
    y = net.op("Conv", net.input("x", 1, 4, 3, 3), weight)
    steps = scale.reshape(-1, 1, 1, 1) if per_channel else scale
    return net.proto(y), (integers.astype(np.float32) - zero) * steps


@pytest.mark.parametrize(
    ("dtype", "zero", "per_channel"),
    [(np.int8, 0, True), (np.int8, 3, False), (np.uint8, 128, True)],
)
def test_a_weight_stored_as_integers_becomes_float(
    dtype: type, zero: int, per_channel: bool
) -> None:
    proto, expected = _stored_int8(dtype, zero, per_channel)
    graph = gs.import_onnx(proto)
    assert len(strip_qdq(graph)) == 1
    (conv,) = graph.nodes
    np.testing.assert_allclose(conv.inputs[1].values, expected, rtol=1e-6)
    assert conv.inputs[1].values.dtype == np.float32
    feed = feeds(proto)
    np.testing.assert_allclose(run(to_proto(graph), feed)[0], run(proto, feed)[0], rtol=1e-5)


@pytest.mark.parametrize("ops", [("Relu",), ()], ids=["computed", "fed"])
def test_a_quantized_output_of_another_tool_keeps_its_name(ops: tuple[str, ...]) -> None:
    """A pair in front of the network's output, which Fusewright never places."""
    net = Net()
    x = net.input("x", 1, 4)
    for op in ops:
        x = net.op(op, x)
    zero = net.store(0, "zero", np.int8)
    q = net.op("QuantizeLinear", x, 0.1, zero)
    y = net.op("DequantizeLinear", q, 0.1, zero)
    graph = gs.import_onnx(net.proto(y))
    assert strip_qdq(graph) == [x]
    stripped = to_proto(graph)
    onnx.checker.check_model(stripped)
    assert [v.name for v in stripped.graph.output] == [y]
    assert count_qdq(stripped) == 0
    value = np.float32([[1, 0, 0.12, 3]])
    assert np.array_equal(run(stripped, {"x": value})[0], value)
