"""INT4 in graphs: what is chosen and stored, that onnxruntime reads it, and that data helps."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net, run
from quantizing import planned
from smoothing import norm

from fusewright.errors import DataError, ModelError, UsageError
from fusewright.graph.convert import to_proto
from fusewright.graph.workspace import Workspace, embed
from fusewright.plan.collapse import collapse
from fusewright.plan.plan import Plan
from fusewright.quantize.int4.blocks import BlockWeight
from fusewright.quantize.int4.scaling import awq_scale, scale_channels
from fusewright.quantize.int4.sites import Int4Site, Kept, int4_sites
from fusewright.quantize.int4.statistics import (
    InputStatistics,
    MomentObserver,
    observe_inputs,
    plan_passes,
)
from fusewright.quantize.int4.storing import int4_tensor
from fusewright.quantize.int4.weights import METHODS, Int4Settings, round_weights

C, HIDDEN = 64, 128


def _mlp(opset: int = 21, seed: int = 0) -> tuple[Net, str]:
    """Norm → Linear, Relu → Linear, as a block of a transformer; input channels differ in size."""
    net = Net(opset=opset, seed=seed)
    x = norm(net, net.input("x", "batch", 6, C), C)
    sizes = np.exp(net.random.standard_normal(C)).astype(np.float32)
    net.stored[next(n for n in net.stored if n.startswith("gamma"))] *= sizes
    for into, out, name in ((C, HIDDEN, "up"), (HIDDEN, C, "down")):
        weight = net.draw(into, out, name=f"{name}_w")
        net.stored[weight] *= np.float32(0.2)
        x = net.op("Add", net.op("MatMul", x, weight, name=name), net.draw(out, name="b"))
        x = net.op("Relu", x) if name == "up" else x
    return net, x


def _chosen(plan: Plan, block: int = 32) -> list[Int4Site | Kept]:
    return int4_sites(plan, block, lambda group: group.is_quantized)


def _sites(plan: Plan, block: int = 32) -> list[Int4Site]:
    return [site for site in _chosen(plan, block) if isinstance(site, Int4Site)]


def _samples(count: int = 24, seed: int = 2) -> list[dict[str, np.ndarray]]:
    """Rows that lie near a plane of eight dimensions, as activations do."""
    random = np.random.default_rng(seed)
    plane = np.random.default_rng(9).standard_normal((8, C))
    found = []
    for _ in range(count):
        rows = random.standard_normal((4, 6, 8)) @ plane + 0.3 * random.standard_normal((4, 6, C))
        found.append({"x": rows.astype(np.float32)})
    return found


def _observed(net: Net, output: str) -> tuple[Plan, list[Int4Site], dict[str, InputStatistics]]:
    plan = planned(net, output)
    sites = _sites(plan)
    return plan, sites, observe_inputs(to_proto(plan.model.graph), sites, _samples())


def _sqnr(exact: np.ndarray, found: np.ndarray) -> float:
    error = np.square((exact - found).astype(np.float64)).sum()
    return float(10 * np.log10(np.square(exact.astype(np.float64)).sum() / error))


def test_packed_as_onnx_packs() -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (5, 3)).astype(np.int8)
    found = onnx.numpy_helper.to_array(int4_tensor("w", codes))
    assert np.array_equal(found.astype(np.int8), codes)
    assert len(int4_tensor("w", codes).raw_data) == 8


def test_what_is_stored() -> None:
    net, output = _mlp()
    plan = planned(net, output)
    before = {n.name: n for n in plan.model.graph.nodes}
    sites = _sites(plan)
    assert [(s.shape, s.axis, s.block) for s in sites] == [
        ((C, HIDDEN), 0, 32),
        ((HIDDEN, C), 0, 32),
    ]
    floats = {s.tensor: np.array(plan.model.graph.tensors()[s.tensor].values) for s in sites}
    round_weights(plan.model.graph, sites, Int4Settings("rtn"))
    proto = to_proto(plan.model.graph)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.ir_version >= 10
    stored = {t.name: t for t in proto.graph.initializer}
    for node in plan.model.graph.nodes:
        if node.op != "DequantizeLinear":
            continue
        weight, scale = (stored[t.name] for t in node.inputs)
        assert node.attrs == {"axis": 0, "block_size": 32} and len(node.inputs) == 2
        assert weight.data_type == onnx.TensorProto.INT4
        assert len(weight.raw_data) == floats[weight.name].size // 2
        codes = onnx.numpy_helper.to_array(weight).astype(np.int8)
        values = BlockWeight(codes, onnx.numpy_helper.to_array(scale)).values
        assert _sqnr(floats[weight.name], values) > 15
        (reader,) = node.outputs[0].outputs
        assert reader.name in before and reader.inputs[1] is node.outputs[0]
    assert sum(n.op == "DequantizeLinear" for n in plan.model.graph.nodes) == 2
    assert onnx.ModelProto.FromString(proto.SerializeToString()) == proto


def test_onnxruntime_computes_with_the_rounded_weights() -> None:
    net, output = _mlp()
    plan, twin = planned(net, output), planned(net, output)
    sites = _sites(plan)
    round_weights(plan.model.graph, sites, Int4Settings("rtn"))
    proto = to_proto(plan.model.graph)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for site in sites:
        codes, scales = stored[site.tensor].astype(np.int8), stored[f"{site.tensor}_scale"]
        twin.model.graph.tensors()[site.tensor].values = BlockWeight(codes, scales).values
    feed = _samples(1)[0]
    (expected,), (found,) = run(to_proto(twin.model.graph), feed), run(proto, feed)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_collapsed_it_computes_the_same() -> None:
    net, output = _mlp()
    plan = planned(net, output)
    round_weights(plan.model.graph, _sites(plan), Int4Settings("rtn"))
    collapsed = to_proto(collapse(plan.model.graph, plan))
    onnx.checker.check_model(collapsed)
    assert {f.name for f in collapsed.functions} >= {"LinearAct", "Linear"}
    feed = _samples(1)[0]
    (flat,), (found,) = run(to_proto(plan.model.graph), feed), run(collapsed, feed)
    assert np.array_equal(flat, found)


def test_it_survives_a_round_trip_through_graphsurgeon() -> None:
    net, output = _mlp()
    plan = planned(net, output)
    round_weights(plan.model.graph, _sites(plan), Int4Settings("rtn"))
    proto = to_proto(plan.model.graph)
    again = to_proto(gs.import_onnx(proto))
    assert {t.name: t.raw_data for t in again.graph.initializer} == {
        t.name: t.raw_data for t in proto.graph.initializer
    }


def test_data_helps_on_samples_not_seen() -> None:
    net, output = _mlp()
    feeds = _samples(8, seed=77)
    exact = np.concatenate([run(net.proto(output), feed)[0] for feed in feeds])
    found, layers = {}, {}
    for method in METHODS:
        plan, sites, statistics = _observed(net, output)
        workspace = Workspace()
        if Int4Settings(method).scales_channels:
            statistics = scale_channels(plan, sites, statistics, workspace).statistics
        rounded = round_weights(plan.model.graph, sites, Int4Settings(method), statistics)
        proto = embed(to_proto(plan.model.graph), workspace)
        found[method] = _sqnr(exact, np.concatenate([run(proto, f)[0] for f in feeds]))
        layers[method] = np.mean([weight.sqnr_db for weight in rounded])
    assert found["awq"] > found["rtn"] + 1 and layers["awq"] > layers["rtn"] + 1
    assert found["gptq"] > found["awq"] + 3 and layers["gptq"] > layers["awq"] + 3


def test_scaling_keeps_the_results_and_lowers_the_error() -> None:
    net, output = _mlp()
    plan, sites, statistics = _observed(net, output)
    workspace = Workspace()
    scaled = scale_channels(plan, sites, statistics, workspace)
    assert [s.place.producer for s in scaled.scalings] == [
        next(n.name for n in plan.model.graph.nodes if n.op == "LayerNormalization"),
        "up",
    ]
    assert any(s.alpha > 0 for s in scaled.scalings) and all(s.error <= 1 for s in scaled.scalings)
    feed = _samples(1, seed=3)[0]
    proto = embed(to_proto(plan.model.graph), workspace)
    assert _sqnr(run(net.proto(output), feed)[0], run(proto, feed)[0]) > 100
    # The statistics are those that observing again gives.
    again = observe_inputs(proto, sites, _samples())
    for name, seen in scaled.statistics.items():
        assert np.allclose(seen.mean, again[name].mean, rtol=1e-4)
        assert np.allclose(seen.moments, again[name].moments, rtol=1e-3, atol=1e-5)


def test_scaling_can_be_taken_back() -> None:
    net, output = _mlp()
    plan, sites, statistics = _observed(net, output)
    before = to_proto(plan.model.graph).SerializeToString(deterministic=True)
    scaled = scale_channels(plan, sites, statistics, Workspace())
    assert to_proto(plan.model.graph).SerializeToString(deterministic=True) != before
    scaled.applied.undo()
    assert to_proto(plan.model.graph).SerializeToString(deterministic=True) == before


def test_the_formula_of_the_scale() -> None:
    mean = np.array([0.0, 1.0, 4.0, 16.0], np.float32)
    assert np.allclose(awq_scale(mean, 0.5), [1, 0.5, 1, 2])
    assert np.array_equal(awq_scale(mean, 0.0), np.ones(4))


def test_a_weight_that_others_read_keeps_its_float_form_for_them() -> None:
    net = Net(opset=21)
    weight = net.draw(C, C, name="tied")
    x = net.input("x", 2, 6, C)
    outputs = net.op("MatMul", x, weight), net.op("Abs", weight)
    plan = planned(net, *outputs)
    round_weights(plan.model.graph, _sites(plan), Int4Settings("rtn"))
    stored = {t.name: t.data_type for t in to_proto(plan.model.graph).graph.initializer}
    assert stored[weight] == onnx.TensorProto.FLOAT
    assert stored[f"{weight}_int4"] == onnx.TensorProto.INT4


def test_one_weight_for_two_linears_is_stored_once() -> None:
    net = Net(opset=21)
    weight = net.draw(C, C, name="shared")
    one, other = net.input("x", 2, C), net.input("y", 2, C)
    outputs = net.op("MatMul", one, weight), net.op("MatMul", other, weight)
    plan = planned(net, *outputs)
    (site,) = _sites(plan)
    assert site.reads == ("x", "y") and len(site.readers) == 2
    feeds = [{"x": f["x"][0], "y": 2 * f["x"][1]} for f in _samples()]
    statistics = observe_inputs(to_proto(plan.model.graph), [site], feeds)
    round_weights(plan.model.graph, [site], Int4Settings("gptq"), statistics)
    assert sum(n.op == "DequantizeLinear" for n in plan.model.graph.nodes) == 1


def test_a_gemm_that_stores_the_weight_transposed() -> None:
    net = Net(opset=21)
    weight = net.draw(HIDDEN, C, name="rows")
    output = net.op("Gemm", net.input("x", 4, C), weight, net.draw(HIDDEN), transB=1)
    model = net.model(output)
    site = Int4Site(weight, ((model.graph.nodes[0].name, 1),), 1, ("x",), (C, HIDDEN), 32, ())
    feeds = [{"x": f["x"][0, :4]} for f in _samples()]
    statistics = observe_inputs(to_proto(model.graph), [site], feeds)
    (rounded,) = round_weights(model.graph, [site], Int4Settings("gptq"), statistics)
    proto = to_proto(model.graph)
    onnx.checker.check_model(proto, full_check=True)
    exact, found = run(net.proto(output), feeds[0])[0], run(proto, feeds[0])[0]
    assert _sqnr(exact, found) > 20 and rounded.sqnr_db > 20


def _kept(build) -> str:
    net = Net(opset=21)
    plan = planned(net, *build(net))
    (kept,) = _chosen(plan)
    assert isinstance(kept, Kept)
    return kept.reason


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda n: (n.op("MatMul", n.input("x", 2, 40), n.draw(40, 64)),),
            "40 input channels, which is no multiple of 32",
        ),
        (
            lambda n: (n.op("MatMul", n.input("x", 2, C), n.draw(C, 9)),),
            "an odd number of outputs (9): two INT4 values share a byte",
        ),
    ],
)
def test_what_stays_float(build, reason: str) -> None:
    assert _kept(build) == reason


def test_a_weight_that_is_an_output_stays_float() -> None:
    def build(net: Net) -> tuple[str, ...]:
        weight = net.draw(C, C, name="shown")
        return net.op("MatMul", net.input("x", 2, C), weight), weight

    assert "is an output of the model" in _kept(build)


def test_an_old_opset_is_refused() -> None:
    net, output = _mlp(opset=17)
    plan = planned(net, output)
    with pytest.raises(ModelError, match="INT4 weights need opset 21, the graph has 17"):
        round_weights(plan.model.graph, _sites(plan), Int4Settings("rtn"))


def test_missing_statistics_are_named() -> None:
    net, output = _mlp()
    plan, sites, statistics = _observed(net, output)
    name = sites[1].reads[0]
    del statistics[name]
    with pytest.raises(DataError, match=f"no statistics of '{name}'"):
        round_weights(plan.model.graph, sites, Int4Settings("gptq"), statistics)
    assert not any(n.op == "DequantizeLinear" for n in plan.model.graph.nodes)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="no INT4 method 'best': choose rtn, awq, gptq"):
        Int4Settings("best")
    with pytest.raises(UsageError, match="damping 0"):
        Int4Settings(damping=0.0)


def test_statistics_by_their_definition() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 7, 12)).astype(np.float32)
    observer = MomentObserver(12)
    for part in rows:
        observer.update(part, "x")
    found, flat = observer.statistics("x"), rows.reshape(-1, 12).astype(np.float64)
    assert found.rows == 35
    assert np.allclose(found.mean, np.abs(flat).mean(axis=0))
    assert np.allclose(found.moments, flat.T @ flat / 35, atol=1e-6)
    factor = np.linspace(0.5, 2, 12).astype(np.float32)
    scaled = (flat * factor).T @ (flat * factor) / 35
    assert np.allclose(found.scaled(factor).moments, scaled, atol=1e-5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), np.float32), "not float with 4 channels"),
        (np.zeros((2, 4), np.int64), "not float with 4 channels"),
        (np.full((2, 4), np.nan, np.float32), "NaN or Inf"),
    ],
)
def test_values_that_have_no_statistics(array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MomentObserver(4).update(array, "x")


def test_passes_keep_readers_of_one_tensor_together_and_go_backwards() -> None:
    def site(name: str, *reads: str, channels: int = 64) -> Int4Site:
        return Int4Site(name, ((name, 1),), 0, reads, (channels, 64), 32, ())

    sites = [site("q", "a"), site("k", "a"), site("o", "b"), site("v", "a"), site("u", "c")]
    whole = plan_passes(sites)
    assert [s.tensor for part in whole for s in part] == ["q", "k", "v", "o", "u"]
    parts = plan_passes(sites, budget=8 * 64 * 64)
    assert [[s.tensor for s in part] for part in parts] == [["u"], ["o"], ["q", "k", "v"]]
    parts = plan_passes(sites, budget=2 * 8 * 64 * 64)
    assert [[s.tensor for s in part] for part in parts] == [["o", "u"], ["q", "k", "v"]]
    assert plan_passes([]) == []


def test_what_the_plan_decides_is_what_is_rounded() -> None:
    net, output = _mlp()
    plan = planned(net, output)
    assert int4_sites(plan) == []
    plan.group("down").decision, plan.block_size = "int4", 64
    (site,) = int4_sites(plan)
    assert isinstance(site, Int4Site)
    assert (site.groups, site.block, site.reads) == (("down",), 64, plan.group("down").inputs)


def test_progress_counts_weights() -> None:
    net, output = _mlp()
    plan, sites, statistics = _observed(net, output)
    seen: list[int] = []
    scale_channels(plan, sites, statistics, Workspace(), seen.append)
    round_weights(plan.model.graph, sites, Int4Settings("gptq"), statistics, seen.append)
    assert seen == [1, 2, 1, 2]
