"""The choices that the rules leave."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from searching import chain_plan, planned

from fusewright.plan.plan import FLOAT, Plan, node_index
from fusewright.quantize.residual import stream_tensors
from fusewright.search.arithmetic import multiply_adds, weight_elements
from fusewright.search.choices import Choice, find_choices
from fusewright.search.variant import Baseline, Variant, observed


def _choices(plan: Plan, *fixed: str) -> dict[str, Choice]:
    return {c.name: c for c in find_choices(plan, Baseline.of(plan), frozenset(fixed))}


def _named(plan: Plan, *fixed: str) -> dict[str, set[str]]:
    return {name.split(" in float")[0]: set(c.groups) for name, c in _choices(plan, *fixed).items()}


def _convolutions() -> Plan:
    """Stem, two equal blocks, squeeze and excitation, classifier."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", "batch", 3, 16, 16), 32, 3, name="stem"))
    for i in range(2):
        x = net.op("Relu", net.conv(x, 32, 32, name=f"block{i}"))
    gate = net.op("GlobalAveragePool", x)
    gate = net.op("Relu", net.conv(gate, 8, 32, 1, name="fc1"))
    gate = net.op("Sigmoid", net.conv(gate, 32, 8, 1, name="fc2"))
    x = net.op("Relu", net.conv(net.op("Mul", x, gate), 64, 32, name="wide"))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return planned(net, net.op("Gemm", x, net.draw(64, 10), net.draw(10), name="head"))


def test_families_and_classes() -> None:
    found = _named(_convolutions())
    assert found["layers on 1x1 maps"] == {"fc1", "fc2"}
    assert found["the first layer"] == {"stem"}
    assert found["the last layer"] == {"head"}
    assert found["layers behind pooling or Resize"] == {"fc1", "head"}
    assert found["2 ConvBNAct [32, 32, 3, 3]"] == {"block0", "block1"}, "repeated: tried once"
    assert found["1 ConvBNAct [64, 32, 3, 3]"] == {"wide"}
    # A family of one class is that class: it is not tried twice.
    assert "1 ConvBNAct [32, 3, 3, 3]" not in found


def test_what_the_user_decided_is_no_choice() -> None:
    found = _named(_convolutions(), "block0", "fc1")
    assert found["1 ConvBNAct [32, 32, 3, 3]"] == {"block1"}
    assert found["layers on 1x1 maps"] == {"fc2"}


def test_float_groups_are_no_choice() -> None:
    plan = chain_plan()
    for group in plan.groups:
        group.decision = FLOAT
    assert not _choices(plan)


def test_few_channels() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", "batch", 64, 8, 8), 16, 64, name="narrow"))
    plan = planned(net, net.op("Relu", net.conv(x, 64, 16, name="wide")))
    found = _named(plan)
    assert found["convolutions of less than 32 channels"] == {"narrow", "wide"}


def test_skips_of_residual_sums() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", "batch", 32, 8, 8), 32, 32))
    for i in range(2):
        y = net.op("Relu", net.conv(x, 32, 32))
        x = net.op("Relu", net.op("Add", net.conv(y, 32, 32, name=f"block{i}"), x))
    plan = planned(net, net.op("Relu", net.conv(x, 32, 32)))
    (choice,) = (c for n, c in _choices(plan).items() if n.startswith("skips of 2 ConvBNAddAct"))
    assert len(choice.variant.skips) == 2
    baseline = Baseline.of(plan)
    before, after = baseline.set(plan), baseline.set(plan, choice.variant)
    assert len(before.activations) == len(after.activations), "the next conv reads the pair"
    readers = [sum(len(site.readers) for site in p.activations) for p in (before, after)]
    assert readers[0] - readers[1] == 2


def _transformer() -> Plan:
    net = Net()
    x = net.op("Exp", net.input("x", "b", 5, 8))
    for _ in range(2):
        y = net.op("LayerNormalization", x, net.draw(8), net.draw(8), axis=-1)
        y = net.op("Relu", net.op("MatMul", y, net.draw(8, 8)))
        x = net.op("Add", x, net.op("MatMul", y, net.draw(8, 8)))
    return planned(net, net.op("MatMul", x, net.draw(8, 3), name="head"))


def test_the_residual_stream() -> None:
    plan = _transformer()
    streams = [c for n, c in _choices(plan).items() if n.startswith("residual stream quantized")]
    assert streams, "all of one shape: one choice"
    baseline = Baseline.of(plan)
    readers = {
        node for site in baseline.set(plan, streams[0].variant).activations
        for node, _ in site.readers
    }  # fmt: skip
    ops = {node_index(plan.model.graph)[name].op for name in readers}
    assert {"LayerNormalization", "Add"} <= ops


def test_a_stream_that_linears_read_too() -> None:
    """Post-norm: the stream is what the norm writes, and the next Linear reads it in INT8."""
    net = Net()
    x = net.input("x", "b", 5, 8)
    for _ in range(2):
        y = net.op("MatMul", net.op("Relu", net.op("MatMul", x, net.draw(8, 8))), net.draw(8, 8))
        x = net.op("LayerNormalization", net.op("Add", x, y), net.draw(8), net.draw(8), axis=-1)
    plan = planned(net, net.op("MatMul", x, net.draw(8, 3), name="head"))
    baseline = Baseline.of(plan)
    (choice,) = (c for n, c in _choices(plan).items() if n.startswith("residual stream quantized"))
    nodes = node_index(plan.model.graph)
    readers = {
        name for site in baseline.set(plan, choice.variant).activations for name, _ in site.readers
    }
    assert {nodes[name].op for name in readers} == {"MatMul", "Add", "LayerNormalization"}


def test_with_the_stream_quantized_the_choice_is_float() -> None:
    plan = _transformer()
    plan.residual = stream_tensors(plan)
    baseline = Baseline.of(plan)
    names = [choice.name for choice in find_choices(plan, baseline)]
    assert any(name.startswith("residual stream in float") for name in names)
    with_stream = baseline.set(plan)
    without = baseline.set(plan, Variant(residual=baseline.streams))
    assert len(with_stream.observe) > len(without.observe)


def test_a_variant_is_taken_back() -> None:
    plan = _convolutions()
    baseline = Baseline.of(plan)
    before, groups = baseline.set(plan).lines(), [str(group) for group in plan.groups]
    for choice in _choices(plan).values():
        assert baseline.set(plan, choice.variant).lines() != before
    assert baseline.set(plan).lines() == before
    assert [str(group) for group in plan.groups] == groups


def test_every_variant_observes_what_was_seen() -> None:
    for plan in (_convolutions(), _transformer(), chain_plan()):
        seen, baseline = set(observed(plan)), Baseline.of(plan)
        for choice in find_choices(plan, baseline):
            placement = baseline.set(plan, choice.variant)
            assert {t for names in placement.observe.values() for t in names} <= seen


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (Variant((("a", "float"),)), Variant((("b", "float"),)), (("a", "float"), ("b", "float"))),
        (Variant((("a", "int8"),)), Variant((("a", "float"),)), (("a", "float"),)),
    ],
)
def test_variants_add_up(
    first: Variant, second: Variant, joined: tuple[tuple[str, str], ...]
) -> None:
    both = first.plus(second)
    assert both.decisions == joined
    assert both.key() == second.plus(first).key() or first.decisions[0][0] == "a"
    assert first.is_part_of(both) == (first.decisions[0] in joined)
    assert not both.is_part_of(both)


def test_multiply_adds() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 2, 4, 8, 8), 8, 4, name="conv"))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    plan = planned(net, net.op("Gemm", x, net.draw(8, 5), net.draw(5), name="head"))
    nodes = node_index(plan.model.graph)
    found = {g.name: multiply_adds(g, nodes) for g in plan.groups}
    assert found["conv"] == 2 * 8 * 8 * 8 * 4 * 9
    assert found["head"] == 2 * 8 * 5
    assert weight_elements(plan.group("conv"), nodes) == 8 * 4 * 9
    assert weight_elements(plan.group("head"), nodes) == np.prod((8, 5))
