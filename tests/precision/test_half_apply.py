"""Applying a plan: Casts shared and few, the interface kept, stored tensors in the types read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net, as_model, feeds
from halving import Halved, halved, worst_error
from onnx import TensorProto, helper

from fusewright.graph.convert import to_proto
from fusewright.graph.workspace import Workspace, embed
from fusewright.precision import HalfOptions, apply_half, measure, plan_half, rounding_twin

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def _linear(net: Net, x: str) -> str:
    return net.op("MatMul", x, net.draw(8, 8))


def _branch(op: str, source: str, name: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(name, FLOAT, [4, 8])
    return helper.make_graph([helper.make_node(op, [source], [name], name)], name, [], [out])


def _island(net: Net, x: str) -> str:
    """Too large for half in between."""
    return net.op("Tanh", net.op("Mul", net.op("Mul", x, 1e6), 1e-6))


def one_linear(net: Net) -> tuple[str, ...]:
    return (_linear(net, net.input("x", 4, 8)),)


def two_readers(net: Net) -> tuple[str, ...]:
    x = net.input("x", 4, 8)
    return (net.op("Add", _linear(net, x), _linear(net, x)),)


def interior_output(net: Net) -> tuple[str, ...]:
    y = net.op("Relu", _linear(net, net.input("x", 4, 8)))
    return y, _linear(net, y)


def island(net: Net) -> tuple[str, ...]:
    return (_linear(net, _island(net, _linear(net, net.input("x", 4, 8)))),)


def island_read_twice(net: Net) -> tuple[str, ...]:
    y = _island(net, _linear(net, net.input("x", 4, 8)))
    return (net.op("Add", _linear(net, y), _linear(net, y)),)


def cheap_op_between_islands(net: Net) -> tuple[str, ...]:
    y = net.op("Relu", _island(net, _linear(net, net.input("x", 4, 8))))
    return (_linear(net, _island(net, net.op("Transpose", y, perm=[0, 1]))),)


def own_casts_through_half(net: Net) -> tuple[str, ...]:
    y = net.op("Cast", _linear(net, net.input("x", 4, 8)), to=HALF)
    return (_linear(net, net.op("Cast", y, to=FLOAT)),)


def own_cast_from_integers(net: Net) -> tuple[str, ...]:
    return (_linear(net, net.op("Cast", net.input("i", 4, 8, dtype=np.int64), to=FLOAT)),)


def half_model_with_a_float_core(net: Net) -> tuple[str, ...]:
    x = net.op("Cast", net.input("x", 4, 8, dtype=np.float16), to=FLOAT)
    return (net.op("Cast", _linear(net, x), to=HALF),)


def branches(net: Net) -> tuple[str, ...]:
    y = _linear(net, net.input("x", 4, 8))
    flag = net.op("Greater", net.op("ReduceSum", y, keepdims=0), 0.0)
    parts = {"then_branch": _branch("Relu", y, "a"), "else_branch": _branch("Neg", y, "b")}
    return (_linear(net, net.op("If", flag, **parts)),)


def branch_that_hands_through(net: Net) -> tuple[str, ...]:
    y = _linear(net, net.input("x", 4, 8))
    flag = net.op("Greater", net.op("ReduceSum", y, keepdims=0), 0.0)
    parts = {"then_branch": _branch("Identity", y, "a"), "else_branch": _branch("Neg", y, "b")}
    return net.op("If", flag, **parts), _linear(net, y)


def loop(net: Net) -> tuple[str, ...]:
    x = net.input("x", 4, 8)
    start, weight = _linear(net, x), net.draw(8, 8)
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["v", weight], ["m"], "m"),
            helper.make_node("Add", ["m", start], ["s"], "s"),
            helper.make_node("Tanh", ["s"], ["next"], "next"),
            helper.make_node("Identity", ["go"], ["on"], "on"),
        ],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("go", TensorProto.BOOL, []),
            info("v", FLOAT, [4, 8]),
        ],
        [info("on", TensorProto.BOOL, []), info("next", FLOAT, [4, 8])],
    )
    y = net.op("Loop", np.int64(3), np.array(True), start, body=body)
    return (net.op("MatMul", net.op("Reshape", y, [4, 8]), weight),)


def resized(net: Net) -> tuple[str, ...]:
    """Scales stay float32; bounds, fill and branches take the type of what they meet."""
    y = net.conv(net.input("x", 1, 4, 8, 8), 4, 4)
    y = net.op("Resize", y, None, net.store([1, 1, 2, 2]), mode="linear")
    y = net.op("Pad", y, [0, 0, 1, 1, 0, 0, 1, 1], np.float32(0.5))
    y = net.op("Clip", y, np.float32(-1), np.float32(1))
    y = net.op("Where", net.op("Greater", y, 0.25), y, np.float32(0.1))
    return (net.conv(net.op("Concat", y, net.op("Neg", y), axis=1), 4, 8),)


def stored_fill(net: Net) -> tuple[str, ...]:
    size = net.op("Shape", net.input("x", 4, 8))
    value = helper.make_tensor("v", FLOAT, [1], [0.5])
    return (_linear(net, net.op("Add", net.op("ConstantOfShape", size, value=value), "x")),)


# How many Casts the result has.
MODELS: dict[Callable[[Net], tuple[str, ...]], int] = {
    one_linear: 2,
    two_readers: 2,
    interior_output: 3,
    island: 4,
    island_read_twice: 4,
    cheap_op_between_islands: 4,
    own_casts_through_half: 2,
    own_cast_from_integers: 2,
    half_model_with_a_float_core: 0,
    branches: 4,
    branch_that_hands_through: 3,
    loop: 4,
    resized: 2,
    stored_fill: 2,
}


def _built(build: Callable[[Net], tuple[str, ...]], **options: object) -> Halved:
    net = Net()
    return halved(net, *build(net), **options)


@pytest.mark.parametrize("build", MODELS, ids=lambda b: b.__name__)
def test_casts_and_results(build: Callable[[Net], tuple[str, ...]]) -> None:
    found = _built(build)
    assert found.casts == MODELS[build], found.ops
    assert found.error() < 1e-2
    for old, new in zip(_interface(found.before), _interface(found.after), strict=True):
        assert old == new


def _interface(proto: onnx.ModelProto) -> list[tuple[str, int]]:
    values = (*proto.graph.input, *proto.graph.output)
    return [(v.name, v.type.tensor_type.elem_type) for v in values]


@pytest.mark.parametrize("build", [one_linear, two_readers, interior_output, island])
def test_half_interface(build: Callable[[Net], tuple[str, ...]]) -> None:
    found = _built(build, options=HalfOptions(io_half=True))
    assert {kind for _, kind in _interface(found.after)} == {HALF}
    assert [name for name, _ in _interface(found.after)] == [n for n, _ in _interface(found.before)]
    assert found.casts == (2 if build is island else 0)
    assert found.error() < 1e-2


def _stored(proto: onnx.ModelProto) -> dict[str, int]:
    return {t.name: t.data_type for t in proto.graph.initializer}


def test_a_weight_keeps_its_name() -> None:
    """A plan knows the weights of its groups by name."""
    found = _built(one_linear)
    assert _stored(found.after) == dict.fromkeys(_stored(found.before), HALF)


def test_a_stored_tensor_is_stored_in_each_type_it_is_read_in() -> None:
    net = Net()
    factor = net.store(np.linspace(200, 300, 8), "factor")
    y = _linear(net, net.input("x", 4, 8))
    large = net.op("Mul", net.op("Mul", net.op("Mul", y, factor), factor), factor)
    y = net.op("Add", _linear(net, net.op("Tanh", large)), factor)
    found = halved(net, y)
    kinds = sorted(k for n, k in _stored(found.after).items() if n.startswith(factor))
    assert kinds == [FLOAT, HALF]
    assert found.error() < 1e-2


def test_what_a_subgraph_reads_stays_float32() -> None:
    """The weight that the body shares with a Linear behind the loop is stored in both types."""
    found = _built(loop)
    (node,) = [n for n in found.after.graph.node if n.op_type == "Loop"]
    body = next(a.g for a in node.attribute if a.name == "body")
    (inside,) = body.initializer
    assert inside.data_type == FLOAT
    assert _stored(found.after)[f"{inside.name}_fp16"] == HALF


def test_custom_operators_are_left_alone() -> None:
    net = Net()
    y = net.op("Relu", _linear(net, net.input("x", 4, 8)), name="seen")
    z = net.op("Neg", net.op("Odd", y, domain="vendor", name="odd"), name="behind")
    model = as_model(net.proto(_linear(net, y), z))
    ranges = measure(as_model(_without_custom(net, y)).graph, [feeds(net.proto(y))], "fp16")
    plan = plan_half(model.graph, ranges, "fp16", HalfOptions(frozen=frozenset({"odd", "behind"})))
    assert not {"odd", "behind"} & (plan.half_nodes | set(plan.float_nodes))
    apply_half(model.graph, plan)
    by_name = {node.name: node for node in model.graph.nodes}
    assert by_name["odd"].inputs[0].dtype == np.float32
    assert by_name["behind"].outputs[0].dtype in (None, np.float32)


def _without_custom(net: Net, y: str) -> onnx.ModelProto:
    kept = Net()
    kept.nodes = [n for n in net.nodes if n.name not in ("odd", "behind")]
    kept.inputs, kept.stored = net.inputs, net.stored
    return kept.proto(kept.nodes[-1].output[0])


def test_large_weights_lie_in_the_workspace() -> None:
    net = Net()
    y = net.op("MatMul", net.input("x", 4, 64), net.draw(64, 64))
    proto = net.proto(y)
    model, workspace, samples = as_model(proto), Workspace(), [feeds(proto)]
    plan = plan_half(model.graph, measure(model.graph, samples, "bf16"), "bf16")
    apply_half(model.graph, plan, workspace)
    after = to_proto(model.graph)
    external = [t for t in after.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert [t.data_type for t in external] == [TensorProto.BFLOAT16]
    assert worst_error(proto, rounding_twin(embed(after, workspace)), samples) < 2e-2
    workspace.close()


def _pair(net: Net, x: str, scale: float) -> str:
    zero = net.store(0, "zero", np.int8)
    step = net.store(scale, "scale")
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, step, zero), step, zero)


def _scales(found: Halved) -> list[tuple[str, np.dtype, float]]:
    pairs = ("QuantizeLinear", "DequantizeLinear")
    nodes = [n for n in found.model.graph.nodes if n.op in pairs]
    return [(n.op[0], n.inputs[1].dtype, float(n.inputs[1].values)) for n in nodes]


def _pair_casts(nodes: Sequence[gs.Node]) -> list[str]:
    """Casts in front of a Q or behind a DQ."""
    return [
        node.name
        for node in nodes
        if node.op == "Cast"
        and (
            any(reader.op == "QuantizeLinear" for reader in node.outputs[0].outputs)
            or any(maker.op == "DequantizeLinear" for maker in node.inputs[0].inputs)
        )
    ]


def test_pairs_take_the_type_of_what_they_join() -> None:
    net = Net(19)
    x = _pair(net, net.input("x", 4, 8), 0.1)
    y = _pair(net, net.op("Relu", _linear(net, x)), 0.1)
    found = halved(net, _linear(net, y))
    step = float(np.float16(0.1))
    half, full = np.dtype(np.float16), np.dtype(np.float32)
    # The input is quantized as it comes; both sides of the pair mean the same number.
    expected = [("Q", full, step), ("D", half, step), ("Q", half, step), ("D", half, step)]
    assert _scales(found) == expected
    assert not _pair_casts(found.model.graph.nodes)
    assert found.casts == 1, "at the output"


def test_no_cast_at_a_pair_in_front_of_an_island() -> None:
    net = Net(19)
    y = _pair(net, _linear(net, net.input("x", 4, 8)), 0.1)
    y = _pair(net, _island(net, y), 0.01)
    found = halved(net, _linear(net, y))
    assert not _pair_casts(found.model.graph.nodes)
    assert "Mul Mul Tanh" in found.kept.replace("DequantizeLinear ", "")
    assert found.casts == 2, "of the interface"


def test_a_pair_read_in_both_types_is_dequantized_twice() -> None:
    """By a layer in half, and by an Add that half would overflow: the skip of a residual."""
    net = Net(19)
    x = _pair(net, _linear(net, net.input("x", 4, 8)), 0.1)
    large = net.op("Mul", net.op("Add", net.op("Mul", x, 1e6), x), 1e-6)
    found = halved(net, net.op("Add", _linear(net, x), large))
    assert not _pair_casts(found.model.graph.nodes)
    step = float(np.float16(0.1))
    half, full = np.dtype(np.float16), np.dtype(np.float32)
    assert _scales(found) == [("Q", half, step), ("D", half, step), ("D", full, step)]
    assert found.error() < 1e-3


@pytest.mark.parametrize("scale", [1e-5, 1e-9])
def test_a_scale_without_a_reciprocal(scale: float) -> None:
    """The engine multiplies by 1 / scale: infinite in half below 1.5e-5."""
    net = Net(19)
    small = net.op("Mul", _linear(net, net.input("x", 4, 8)), scale)
    y = net.op("Mul", _pair(net, small, scale), 1 / scale)
    found = halved(net, _linear(net, y))
    quantize = next(n for n in found.model.graph.nodes if n.op == "QuantizeLinear")
    assert quantize.inputs[1].dtype == np.float32
    assert all(value > 0 for *_, value in _scales(found))
    assert found.error() < 1e-2


def _weight_pair(net: Net, weight: np.ndarray) -> Halved:
    """float → Q → DQ, per output channel, in front of a Linear, in half."""
    peaks = np.abs(weight).max(axis=0)
    step = np.where(peaks > 0, peaks / 127, 1.0)
    stored = [net.store(weight, "weight"), net.store(step, "step")]
    stored.append(net.store(np.zeros(step.size), "zero", np.int8))
    quantized = net.op("QuantizeLinear", *stored, axis=1)
    restored = net.op("DequantizeLinear", quantized, *stored[1:], axis=1)
    return halved(net, net.op("MatMul", net.input("x", 4, 8), restored))


def _of_pair(found: Halved, index: int) -> list[np.ndarray]:
    """What Q and DQ of the weight store at one of their inputs, or Q alone at its first."""
    nodes = {n.op: n for n in found.model.graph.nodes}
    ops = ("QuantizeLinear", "DequantizeLinear") if index else ("QuantizeLinear",)
    return [nodes[op].inputs[index].values for op in ops]


def test_a_weight_quantizes_as_it_did_in_float32() -> None:
    """A channel of which is dead: its step is the least that has a reciprocal in half."""
    net = Net(19)
    weight = net.random.standard_normal((8, 8)).astype(np.float32)
    weight[:, 3] *= 1e-7
    found = _weight_pair(net, weight)
    assert _of_pair(found, 0)[0].dtype == np.float16, "stored in half the size"
    scale, other = _of_pair(found, 1)
    assert scale.dtype == other.dtype == np.float16
    np.testing.assert_array_equal(scale, other)
    assert np.isfinite(np.float16(1) / scale).all() and scale.min() < 1.6e-5
    codes = np.rint(weight / scale.astype(np.float32))
    assert np.abs(codes).max() <= 127.5
    after = np.clip(codes, -128, 127) * scale.astype(np.float32)
    step = np.abs(weight).max(axis=0) / 127
    before = np.rint(weight / step) * step
    usual = np.arange(8) != 3
    assert np.abs(after - before)[:, usual].max() <= step[usual].max() * 1.07
    assert np.abs(after - before)[:, 3].max() <= step[usual].min() / 64
    assert found.error() < 1e-2


@pytest.mark.parametrize(
    "sizes",
    [[1e-3] * 7 + [5e-2], [1.0] * 3 + [1e-3] * 5, [1e-3] * 2 + [0.0] * 6],
    ids=["all are small", "most are small", "the others are 0"],
)
def test_a_weight_whose_small_channels_count_stays_float32(sizes: list[float]) -> None:
    net = Net(19)
    weight = net.random.uniform(-1, 1, (8, 8)).astype(np.float32) * np.float32(sizes)
    found = _weight_pair(net, weight)
    assert _of_pair(found, 0)[0].dtype == np.float32, "its scale has no reciprocal"
    quantizes, restores = _of_pair(found, 1)
    assert (quantizes.dtype, restores.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(quantizes, restores.astype(np.float32))
    assert found.error() < 1e-2
