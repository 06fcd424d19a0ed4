"""FP8 pairs and mixed files: placed, inserted, linted, run and taken out again."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net, feeds, run
from quantizing import pairs, planned, scale_of_pair, thresholds

from fusewright.errors import ModelError
from fusewright.graph.convert import to_proto
from fusewright.plan.collapse import collapse
from fusewright.plan.decide import Rules
from fusewright.plan.plan import Plan
from fusewright.quantize.existing import count_qdq, dequantized_reads
from fusewright.quantize.insert import insert_qdq
from fusewright.quantize.lint import lint
from fusewright.quantize.placement import Placement, place
from fusewright.quantize.residual import stream_tensors
from fusewright.quantize.strip import strip_qdq
from fusewright.quantize.weights import scale_of, weight_scale
from fusewright.target import FORMATS

FP8 = FORMATS["fp8"]
_F8 = np.dtype(ml_dtypes.float8_e4m3fn)


def _convs(net: Net) -> str:
    """A stem with its pool, a residual block, and a Concat of two branches under one conv."""
    x = net.op("Relu", net.conv(net.input("x", 1, 3, 16, 16), 16, 3, name="stem"))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], name="pool")
    y = net.op("Relu", net.op("Add", net.conv(x, 16, 16, name="block"), x, name="add"))
    one = net.op("Relu", net.conv(y, 8, 16, name="left"))
    two = net.op("Relu", net.conv(y, 8, 16, name="right"))
    joined = net.op("Concat", one, two, axis=1, name="join")
    return net.conv(joined, 4, 16, name="last")


def _plan(rules: Rules, build: Callable[[Net], str] = _convs, opset: int = 19) -> Plan:
    net = Net(opset)
    return planned(net, build(net), rules=rules)


def _quantized(rules: Rules, build: Callable[[Net], str] = _convs) -> tuple[Plan, Placement]:
    plan = _plan(rules, build)
    placement = place(plan)
    insert_qdq(plan.model.graph, placement, thresholds(placement) | placement.fixed)
    return plan, placement


def _lines(placement: Placement, name: str) -> list[str]:
    return [line for line in placement.lines() if line.startswith(name)]


def test_one_format_is_placed_as_int8_is() -> None:
    def sites(form: str) -> list[tuple[object, ...]]:
        found = place(_plan(Rules(quantized=form)))
        kept = [(s.tensor, s.readers, s.scale) for s in found.activations]
        return [*kept, *((w.tensor, w.readers, w.axis) for w in found.weights), found.observe]

    assert sites("fp8") == sites("int8")
    assert set(place(_plan(Rules(quantized="fp8"))).formats.values()) == {"fp8"}


def test_pairs_of_fp8() -> None:
    plan, placement = _quantized(Rules(quantized="fp8"))
    graph = plan.model.graph
    assert lint(graph) == []
    for q, dq in pairs(graph):
        assert q.inputs[2].values.dtype == q.outputs[0].dtype == _F8
        assert q.inputs[1] is dq.inputs[1] and q.inputs[2] is dq.inputs[2]
    (first, *_) = placement.observe
    (q,) = [q for q, _ in pairs(graph) if q.inputs[0].name == first]
    assert scale_of_pair(q) == scale_of(thresholds(placement)[first], FP8)
    assert scale_of(448.0, FP8) == 1.0


def test_weights_per_channel_and_per_tensor() -> None:
    values = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    largest = np.abs(values).max(axis=(1, 2, 3))
    assert np.array_equal(weight_scale(values, 0, FP8), largest / np.float32(448))
    for per_tensor, rank in ((False, 1), (True, 0)):
        rules = Rules(quantized="fp8", per_tensor_weights=per_tensor)
        plan, placement = _quantized(rules)
        assert {site.axis for site in placement.weights} == {None if per_tensor else 0}
        stored = {site.tensor for site in placement.weights}
        weights = [q for q, _ in pairs(plan.model.graph) if q.inputs[0].name in stored]
        assert {q.inputs[1].values.ndim for q in weights} == {rank}


def test_onnxruntime_rounds_and_saturates_as_e4m3() -> None:
    """Against ml_dtypes: nearest, ties to even, clipped at ±448 · scale."""

    def build(net: Net) -> str:
        return net.op("MatMul", net.input("x", 4, 16), net.draw(16, 16), name="fc")

    plan = _plan(Rules(quantized="fp8"), build)
    placement = place(plan)
    (weight,) = placement.weights
    (values,) = [t.values for t in plan.model.graph.tensors().values() if t.name == weight.tensor]
    insert_qdq(plan.model.graph, placement, {"x": 2.0})
    x = np.random.default_rng(3).standard_normal((4, 16)).astype(np.float32) * 1.5
    assert np.abs(x).max() > 2.0  # some saturate
    (found,) = run(to_proto(plan.model.graph), {"x": x})

    def rounded(array: np.ndarray, scale: np.ndarray) -> np.ndarray:
        steps = np.clip(array / scale, -448, 448).astype(_F8)
        return np.asarray(steps.astype(np.float32) * scale)

    expected = rounded(x, scale_of(2.0, FP8)) @ rounded(values, weight_scale(values, 1, FP8))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_stripping_gives_the_float_graph_back() -> None:
    plain = to_proto(_plan(Rules(quantized="fp8")).model.graph)
    plan, _ = _quantized(Rules(quantized="fp8", group_precision=("last=int8",)))
    proto = to_proto(plan.model.graph)
    assert count_qdq(proto) > 0
    for graph in (plan.model.graph, gs.import_onnx(proto)):
        strip_qdq(graph)
        back = to_proto(graph)
        assert count_qdq(back) == 0
        feed = feeds(plain)
        for one, other in zip(run(plain, feed), run(back, feed), strict=True):
            assert np.array_equal(one, other)


def test_stored_fp8_weights_come_back_as_they_were_rounded() -> None:
    values = np.array([[0.5, -448.0], [1.75, 0.0]], np.float32)
    graph = gs.Graph(opset=19)
    x, y = gs.Variable("x", np.float32, [1, 2]), gs.Variable("y", np.float32, [1, 2])
    w = gs.Variable("w", np.float32, [2, 2])
    stored = gs.Constant("stored", values.astype(_F8))
    scale = gs.Constant("scale", np.array([2.0, 0.5], np.float32))
    zero = gs.Constant("zero", np.zeros(2, _F8))
    graph.nodes = [
        gs.Node("DequantizeLinear", "dq", {"axis": 1}, [stored, scale, zero], [w]),
        gs.Node("MatMul", "fc", {}, [x, w], [y]),
    ]
    graph.inputs, graph.outputs = [x], [y]
    assert strip_qdq(graph) == ["stored_float"]
    assert np.array_equal(graph.nodes[0].inputs[1].values, values * [2.0, 0.5])


def test_collapsed_around_fp8_pairs() -> None:
    plan, _ = _quantized(Rules(quantized="fp8", group_precision=("block=int8",)))
    flat = to_proto(plan.model.graph)
    calls = to_proto(collapse(plan.model.graph, plan))
    onnx.checker.check_model(calls, full_check=True)
    feed = feeds(flat)
    assert calls.functions
    assert np.array_equal(run(flat, feed)[0], run(calls, feed)[0])


def test_a_tensor_read_in_two_formats_has_a_pair_of_each() -> None:
    _, placement = _quantized(Rules(group_precision=("right=fp8",)))
    twice = [s for s in placement.activations if any(r[0] == "right" for r in s.readers)]
    (site,) = twice
    same = [s for s in placement.activations if s.tensor == site.tensor]
    assert {(s.format, tuple(n for n, _ in s.readers)) for s in same} == {
        ("int8", ("left",)),
        ("fp8", ("right",)),
    }
    assert len({s.scale for s in same}) == 2
    assert set(placement.observe) == set(placement.formats)
    for one in same:
        assert placement.observe[one.scale] == (site.tensor,)


def test_a_pair_stays_behind_a_pool_that_is_read_in_two_formats() -> None:
    """MaxPool belongs to the stem's group unless that is switched off: then pairs move up it."""

    def build(net: Net) -> str:
        x = net.op("MaxPool", net.input("x", 1, 16, 8, 8), kernel_shape=[2, 2], name="pool")
        one = net.conv(x, 16, 16, name="one")
        return net.op("Mul", net.op("Exp", one), net.op("Exp", net.conv(x, 16, 16, name="two")))

    alone = place(_plan(Rules(), build))
    assert {s.tensor for s in alone.activations} == {"x"}
    mixed = place(_plan(Rules(group_precision=("two=fp8",)), build))
    assert {(s.tensor, s.format) for s in mixed.activations} == {
        ("pool_y", "int8"),
        ("pool_y", "fp8"),
    }


def test_a_concat_takes_one_format() -> None:
    _, placement = _quantized(Rules(group_precision=("last=fp8",)))
    joined = [s for s in placement.activations if any(r[0] == "join" for r in s.readers)]
    assert {s.format for s in joined} == {"fp8"} and len({s.scale for s in joined}) == 1


MIXED_RULES = [
    Rules(quantized=form, group_precision=(f"{name}={other}",))
    for form, other in (("int8", "fp8"), ("fp8", "int8"))
    for name in ("stem", "block", "left", "right", "last", "*")
]


@pytest.mark.parametrize("rules", MIXED_RULES, ids=lambda r: f"{r.quantized} {r.group_precision}")
def test_mixed_files_hold_the_linters_rules_and_run(rules: Rules) -> None:
    plan, placement = _quantized(rules)
    graph = plan.model.graph
    assert lint(graph) == []
    proto = to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    (found,) = run(proto, feeds(proto))
    (exact,) = run(to_proto(_plan(rules).model.graph), feeds(proto))
    assert np.isfinite(found).all() and not np.array_equal(found, exact)
    assert len({s.scale for s in placement.activations}) == len(
        {(s.scale, s.format) for s in placement.activations}
    )


def test_an_opset_without_the_format_is_refused() -> None:
    plan = _plan(Rules(quantized="fp8"), opset=17)
    placement = place(plan)
    with pytest.raises(ModelError, match="FP8 needs opset 19, the graph has 17"):
        insert_qdq(plan.model.graph, placement, thresholds(placement))
    assert not any(n.op == "QuantizeLinear" for n in plan.model.graph.nodes)


def test_formats_are_read_back_from_the_file() -> None:
    plan, _ = _quantized(Rules(group_precision=("right=fp8",)))
    written = gs.import_onnx(to_proto(plan.model.graph))
    for graph in (plan.model.graph, written):
        found = dequantized_reads(graph)
        assert {name: found[name][1] for name in ("stem", "left", "right", "last")} == {
            "stem": "int8",
            "left": "int8",
            "right": "fp8",
            "last": "int8",
        }


def test_the_residual_stream_takes_the_commonest_format() -> None:
    def build(net: Net) -> str:
        x = net.input("x", 2, 5, 16)
        for name in ("one", "two", "three"):
            scale, bias = net.positive(16), net.draw(16)
            normed = net.op("LayerNormalization", x, scale, bias, axis=-1, name=f"{name}_norm")
            y = net.op("MatMul", normed, net.draw(16, 16), name=name)
            x = net.op("Add", x, y, name=f"{name}_add")
        return x

    plan = _plan(Rules(quantized="fp8", group_precision=("three=int8",)), build)
    stream = {
        s.format
        for s in place(plan, stream_tensors(plan)).activations
        for name, _ in s.readers
        if name.endswith(("norm", "add"))
    }
    assert stream == {"fp8"}
    three = [s for s in place(plan).activations if ("three", 0) in s.readers]
    assert [s.format for s in three] == ["int8"]


def test_int4_places_weights_alone() -> None:
    def build(net: Net) -> str:
        y = net.op("MatMul", net.input("x", 4, 64), net.draw(64, 32), name="one")
        return net.op("MatMul", net.op("Relu", y), net.draw(32, 16), name="two")

    placement = place(_plan(Rules(group_precision=("one=int4",), block_size=32), build))
    assert {r for s in placement.activations for r in s.readers} == {("two", 0)}
    (four,) = [w for w in placement.weights if w.format == "int4"]
    assert (four.axis, four.block_size, four.readers) == (0, 32, (("one", 1),))
    assert _lines(placement, four.tensor) == [f"{four.tensor} axis 0 blocks of 32 int4 -> one:1"]


def _second_zero(graph: gs.Graph) -> None:
    for node in graph.nodes:
        if node.op == "QuantizeLinear":
            node.inputs[2] = gs.Constant("other", np.zeros((), np.int8))
            return


def _operands(graph: gs.Graph) -> None:
    (conv,) = [n for n in graph.nodes if n.name == "last"]
    for tensor in (conv.inputs[1],):
        dq = tensor.inputs[0]
        for node in (dq, dq.inputs[0].inputs[0]):
            node.inputs[2] = gs.Constant("eight", np.zeros(4, np.int8))


def _not_zero(graph: gs.Graph) -> None:
    for node in graph.nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear") and not node.attrs:
            node.inputs[2] = gs.Constant("one", np.ones((), _F8))


PLANTED = {
    _second_zero: "another scale or axis than",
    _operands: "Conv 'last' has operands in FP8 and INT8",
    _not_zero: "a zero-point other than 0 of INT8, FP8, INT4",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda p: p.__name__.strip("_"))
def test_planted_violation_is_found(plant: Callable[[gs.Graph], None]) -> None:
    plan, _ = _quantized(Rules(quantized="fp8"))
    plant(plan.model.graph)
    assert any(PLANTED[plant] in found.text for found in lint(plan.model.graph))
