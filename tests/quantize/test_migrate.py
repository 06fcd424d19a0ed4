"""Smoothing is exact: the same results in onnxruntime, whatever s is; other readers see nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from building import Net, assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizing import planned
from smoothing import C, linear, norm, scales_of

from fusewright.graph.convert import to_proto
from fusewright.graph.workspace import Workspace
from fusewright.plan.plan import Plan
from fusewright.quantize.migrate import (
    apply_smoothing,
    row_maxima,
    smoothing_scale,
)


def _weights(plan: Plan) -> dict[str, np.ndarray]:
    tensors = plan.model.graph.tensors()
    proto = to_proto(plan.model.graph)
    names = {t.name for t in proto.graph.initializer}
    return {n: np.array(t.values) for n, t in tensors.items() if n in names}


def _windowed(net: Net) -> tuple[str, ...]:
    x = norm(net, net.input("x", "batch", 4, 4, C))
    x = net.op("Pad", x, [0, 0, 0, 0, 0, 2, 2, 0])
    x = net.op("Transpose", net.op("Reshape", x, [-1, 2, 3, 2, 3, C]), perm=[0, 1, 3, 2, 4, 5])
    x = net.op("Reshape", x, [-1, 9, C])
    return linear(net, x), linear(net, x, name="k")


def _stack(net: Net) -> tuple[str, ...]:
    x = norm(net, net.input("x", "batch", 6, C))
    x = net.op("Relu", linear(net, x, out=16, name="first"))
    x = net.op("LeakyRelu", linear(net, x, 16, 16, name="second"), alpha=0.3)
    return (linear(net, x, into=16, name="third"),)


def _pooled(net: Net) -> tuple[str, ...]:
    x = net.op("Transpose", norm(net, net.input("x", "batch", 4, 4, C)), perm=[0, 3, 1, 2])
    return (linear(net, net.op("Flatten", net.op("GlobalAveragePool", x))),)


@pytest.mark.parametrize(
    ("build", "count"),
    [(_windowed, 1), (_stack, 3), (_pooled, 1)],
    ids=["windows", "stack", "pool"],
)
def test_the_results_stay(build, count: int) -> None:
    net = Net()
    outputs = build(net)
    plan = planned(net, *outputs)
    sites, scales = scales_of(plan)
    assert len(sites) == count
    before = _weights(plan)
    apply_smoothing(plan, sites, scales, Workspace())
    after = _weights(plan)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {w for site in sites for w in site.weights} <= changed
    assert_equal(net.proto(*outputs), _embedded(plan))


def _embedded(plan: Plan) -> onnx.ModelProto:
    for tensor in plan.model.graph.tensors().values():
        if hasattr(tensor, "_values"):
            _ = tensor.values  # loads what lies in the workspace
    return to_proto(plan.model.graph)


def test_undo_gives_every_byte_back() -> None:
    net = Net()
    plan = planned(net, *_stack(net))
    before = to_proto(plan.model.graph).SerializeToString(deterministic=True)
    sites, scales = scales_of(plan)
    applied = apply_smoothing(plan, sites, scales, Workspace())
    assert to_proto(plan.model.graph).SerializeToString(deterministic=True) != before
    applied.undo()
    assert to_proto(plan.model.graph).SerializeToString(deterministic=True) == before


def test_a_shared_scale_is_copied_for_the_norm_that_is_smoothed() -> None:
    """Exporters store γ = 1 once for all norms."""
    net = Net()
    gamma, beta = net.store(np.ones(C), "ones"), net.store(np.zeros(C), "zeros")
    x = net.input("x", 2, 6, C)
    first = net.op("LayerNormalization", x, gamma, beta, axis=-1, name="first")
    second = net.op("LayerNormalization", first, gamma, beta, axis=-1, name="second")
    outputs = linear(net, second), net.op("Exp", first)
    plan = planned(net, *outputs)
    sites, scales = scales_of(plan)
    assert [site.producer for site in sites] == ["second"]
    apply_smoothing(plan, sites, scales, Workspace())
    nodes = {node.name: node for node in plan.model.graph.nodes}
    assert nodes["first"].inputs[1] is not nodes["second"].inputs[1]
    assert np.array_equal(nodes["first"].inputs[1].values, np.ones(C))
    assert_equal(net.proto(*outputs), _embedded(plan))
    group = next(g for g in plan.groups if "second" in g.members)
    names = {t.name for t in nodes["second"].inputs[1:]}
    assert set(group.parameters.values()) <= names
    assert not names & {gamma, beta}


def test_large_weights_go_to_the_workspace() -> None:
    net = Net()
    output = linear(net, norm(net, net.input("x", 2, C)), out=64)
    plan = planned(net, output)
    sites, scales = scales_of(plan)
    workspace = Workspace()
    apply_smoothing(plan, sites, scales, workspace)
    (weight,) = (plan.model.graph.tensors()[name] for name in sites[0].weights)
    stored = {t.name: t for t in to_proto(plan.model.graph).graph.initializer}
    assert stored[weight.name].data_location == onnx.TensorProto.EXTERNAL
    assert (workspace.folder / "edited.weights").stat().st_size == C * 64 * 4
    assert_equal(net.proto(output), _embedded(plan))


@given(
    st.lists(st.sampled_from(["norm", "relu", "linear", "window"]), min_size=2, max_size=6),
    st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_random_stacks(blocks: list[str], seed: int) -> None:
    net = Net(seed=seed)
    x = net.input("x", 2, 4, C)
    for block in blocks:
        if block == "norm":
            x = norm(net, x, name=net._fresh("norm"))
        elif block == "relu":
            x = net.op("Relu", x)
        elif block == "linear":
            x = linear(net, x, out=C, name=net._fresh("fc"))
        else:
            moved = net.op("Transpose", net.op("Reshape", x, [2, 2, 2, C]), perm=[0, 2, 1, 3])
            x = net.op("Reshape", moved, [2, 4, C])
    output = linear(net, x, name="last")
    plan = planned(net, output)
    sites, scales = scales_of(plan, seed)
    apply_smoothing(plan, sites, scales, Workspace())
    assert_equal(net.proto(output), _embedded(plan))


def test_the_formula() -> None:
    maxima, weights = np.array([8.0, 2.0, 1.0]), np.array([0.5, 0.5, 2.0])
    for alpha in (0.0, 0.3, 0.5, 1.0):
        expected = maxima**alpha / weights ** (1 - alpha)
        found = smoothing_scale(maxima, weights, alpha)
        assert found.dtype == np.float32
        assert np.allclose(found / found[0], expected / expected[0], rtol=1e-6)
        assert np.isclose(np.exp(np.log(found).mean()), 1.0)


def test_dead_channels_keep_one_and_the_rest_is_bounded() -> None:
    maxima = np.array([0.0, 1.0, 1e30, 1e-30, 3.0])
    scale = smoothing_scale(maxima, np.array([1.0, 0.0, 1.0, 1.0, 1.0]), 1.0)
    assert scale[0] == scale[1] == 1.0
    assert np.all(np.isfinite(scale)) and np.all(scale > 0)
    assert scale.max() / scale.min() <= 1024**2
    assert np.array_equal(smoothing_scale(np.zeros(3), np.ones(3), 0.5), np.ones(3))


def test_row_maxima() -> None:
    one, other = np.array([[1.0, -3.0], [0.5, 0.0]]), np.array([[2.0], [-4.0]])
    assert row_maxima([one, other]).tolist() == [3.0, 4.0]
