"""Decisions and their reasons."""

from __future__ import annotations

import time

import numpy as np
import pytest
from building import Net
from planning import DIGITS, plan_of

import fusewright
from fusewright.errors import PlanError, UsageError
from fusewright.plan.decide import Rules, decide, settle
from fusewright.plan.limits import impossible
from fusewright.plan.plan import FLOAT, INT8, Plan, node_index


def _net(net: Net) -> str:
    """Two convolutions, a residual, a pool and a classifier."""
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4, name="stem"), name="stem_act")
    y = net.op("Relu", net.op("Add", net.conv(x, 8, 8, name="block"), x, name="add"), name="act")
    pooled = net.op("Flatten", net.op("GlobalAveragePool", y, name="pool"))
    return net.op("Gemm", pooled, net.draw(8, 3), net.draw(3), name="head")


def _decisions(plan: Plan) -> dict[str, str]:
    return {group.name: group.decision for group in plan.groups}


def _float(rules: Rules) -> set[str]:
    return {name for name, found in _decisions(plan_of(_net, rules)).items() if found == FLOAT}


def test_everything_with_a_weight_is_quantized() -> None:
    plan = plan_of(_net)
    assert _decisions(plan) == {"stem": INT8, "block": INT8, "pool": FLOAT, "head": INT8}
    reasons = {group.name: group.reason for group in plan.groups}
    assert reasons["block"].startswith("its contract: inputs ")
    assert reasons["block"].endswith("weights per channel (axis 0)")
    assert reasons["head"].endswith("weights per channel (axis 1)")
    assert "does not commute" in reasons["pool"]


EXCLUDED = {
    "group name": (("block",), {"block"}),
    "node name": (("stem_act",), {"stem"}),
    "name of an inner node": (("add",), {"block"}),
    "glob": (("st*",), {"stem"}),
    "every group": (("*",), {"stem", "block", "head"}),
    "operator": (("op:Conv",), {"stem", "block"}),
    "operator glob": (("op:Mat*",), {"head"}),
    "inner operator": (("op:Add",), {"block", "head"}),
    "kind": (("op:ConvBNAct",), {"stem"}),
    "two patterns": (("stem", "head"), {"stem", "head"}),
    "case counts": (("op:GlobalAveragePool",), set()),
}


@pytest.mark.parametrize(("patterns", "expected"), EXCLUDED.values(), ids=list(EXCLUDED))
def test_exclude(patterns: tuple[str, ...], expected: set[str]) -> None:
    assert _float(Rules(exclude=patterns)) == expected | {"pool"}


def test_exclude_by_an_operator_that_was_normalized_away() -> None:
    plan = fusewright.inspect(DIGITS, exclude=("op:Gemm", "op:BatchNorm*"))
    assert {g.name: g.reason for g in plan.groups}["/fc/Gemm"] == "excluded by 'op:Gemm'"
    kept = [g.kind for g in plan.groups if g.reason == "excluded by 'op:BatchNorm*'"]
    assert len(kept) == 8


def test_reason_cites_the_first_pattern_that_matches() -> None:
    plan = plan_of(_net, Rules(exclude=("op:Conv", "stem")))
    assert plan.group("stem").reason == "excluded by 'op:Conv'"


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [(("op:Conv",), {"head"}), (("head",), {"stem", "block"}), (("*",), set())],
)
def test_include(patterns: tuple[str, ...], expected: set[str]) -> None:
    plan = plan_of(_net, Rules(include=patterns))
    found = {name for name, decision in _decisions(plan).items() if decision == FLOAT}
    assert found == expected | {"pool"}
    reasons = {group.reason for group in plan.groups if group.name in expected}
    assert reasons <= {"not among what --include names"}


def test_exclude_wins_over_include() -> None:
    plan = plan_of(_net, Rules(include=("op:Conv",), exclude=("stem",)))
    assert _decisions(plan) == {"stem": FLOAT, "block": INT8, "pool": FLOAT, "head": FLOAT}
    assert plan.group("stem").reason == "excluded by 'stem'"


@pytest.mark.parametrize("option", ["exclude", "include"])
@pytest.mark.parametrize("pattern", ["nothing", "op:Einsum", "STEM", "op:conv", ""])
def test_pattern_that_matches_nothing(option: str, pattern: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} '{pattern}' matches no"):
        plan_of(_net, Rules(**{option: ("stem", pattern)}))


def test_deciding_again_starts_afresh() -> None:
    plan = plan_of(_net, Rules(exclude=("*",)))
    decide(plan)
    assert _decisions(plan) == _decisions(plan_of(_net))


def _grouped(into: int, out: int, groups: int, transposed: bool = False) -> Plan:
    def build(net: Net) -> str:
        x = net.input("x", 1, into * groups, 8, 8)
        if transposed:
            w = net.draw(into * groups, out, 3, 3)
            return net.op("ConvTranspose", x, w, group=groups)
        return net.conv(x, out * groups, into * groups, group=groups)

    return plan_of(build)


GROUPED = {
    "4 in, 4 out": ((4, 4, 3), INT8),
    "8 in, 4 out": ((8, 4, 2), INT8),
    "4 in, 12 out": ((4, 12, 2), INT8),
    "depthwise": ((1, 1, 8), FLOAT),
    "depthwise, more channels out": ((1, 4, 4), FLOAT),
    "4 in, 1 out": ((4, 1, 4), FLOAT),
    "6 in, 4 out": ((6, 4, 2), FLOAT),
    "4 in, 6 out": ((4, 6, 2), FLOAT),
    "2 in, 2 out": ((2, 2, 4), FLOAT),
    "one group of any size": ((3, 5, 1), INT8),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("sizes", "decision"), GROUPED.values(), ids=list(GROUPED))
def test_grouped_convolution_guard(sizes: tuple, decision: str, transposed: bool) -> None:
    (group,) = _grouped(*sizes, transposed=transposed).groups
    assert group.decision == decision
    if decision == FLOAT:
        assert f"{sizes[0]} input and {sizes[1]} output channels per group" in group.reason
        assert "multiples of 4" in group.reason


def test_guarded_group_says_so_even_if_excluded() -> None:
    def build(net: Net) -> str:
        return net.conv(net.input("x", 1, 4, 8, 8), 4, 4, group=4, name="depthwise")

    plan = plan_of(build, Rules(exclude=("depthwise",)))
    assert "multiples of 4" in plan.groups[0].reason


def test_other_weights_than_float32() -> None:
    def build(net: Net) -> str:
        x = net.input("x", 1, 4, 8, 8, dtype=np.float16)
        return net.conv(x, 4, 4, dtype=np.float16)

    plan = plan_of(build)
    assert plan.groups[0].decision == FLOAT
    assert "float16" in plan.groups[0].reason
    nodes = node_index(plan.model.graph)
    assert impossible(plan.groups[0], nodes, plan, "int8") == plan.groups[0].reason


def _act_add(net: Net, reader: str) -> str | tuple[str, str]:
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 4, 4, name="stem"))
    y = net.op("Relu", net.conv(x, 4, 4, name="branch"), name="act")
    total = net.op("Add", y, x, name="add")
    if reader == "output":
        return total
    if reader == "conv":
        return net.conv(total, 4, 4, name="next")
    if reader == "conv behind a pool":
        return net.conv(net.op("MaxPool", total, kernel_shape=[2, 2]), 4, 4, name="next")
    if reader == "conv behind an average":
        return net.conv(net.op("AveragePool", total, kernel_shape=[2, 2]), 4, 4, name="next")
    if reader == "conv and output":
        return net.conv(total, 4, 4, name="next"), total
    return net.op("Exp", total)


ACT_ADDS = {"conv": INT8, "conv behind a pool": INT8, "output": FLOAT, "exp": FLOAT}
ACT_ADDS |= {"conv and output": FLOAT, "conv behind an average": FLOAT}


@pytest.mark.parametrize(("reader", "decision"), ACT_ADDS.items())
def test_act_add_has_pairs_on_both_sides_or_neither(reader: str, decision: str) -> None:
    (group,) = [g for g in plan_of(lambda n: _act_add(n, reader)).groups if g.kind == "ActAdd"]
    assert group.decision == decision
    if decision == FLOAT:
        assert "both sides or neither" in group.reason


def test_act_add_settles_after_what_reads_it() -> None:
    """Two in a row: the last is read in float, and takes the INT8 reader from the first."""

    def build(net: Net) -> str:
        x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 4, 4, name="stem"))
        for i in range(2):
            x = net.op("Add", net.op("Relu", net.op("Exp", x)), x, name=f"add{i}")
        return x

    plan = plan_of(build)
    assert {g.decision for g in plan.groups if g.kind == "ActAdd"} == {FLOAT}
    assert sum(g.kind == "ActAdd" for g in plan.groups) == 2


def test_a_long_chain_of_act_adds_settles_in_one_pass() -> None:
    """The last one writes an output, so each takes its reader from the one in front of it."""

    def build(net: Net) -> str:
        x = net.input("x", 1, 4, 8, 8)
        for _ in range(600):
            x = net.op("Add", net.op("Relu", x), x)
        return x

    plan = plan_of(build)
    for group in plan.groups:
        group.decision = INT8
    start = time.process_time()
    settle(plan)
    assert time.process_time() - start < 1  # 5 s where every round looks at all of them again
    assert {group.decision for group in plan.groups} == {FLOAT}


def test_excluded_reader_takes_the_act_add_along() -> None:
    plan = plan_of(lambda n: _act_add(n, "conv"), Rules(exclude=("next",)))
    (group,) = [g for g in plan.groups if g.kind == "ActAdd"]
    assert group.decision == FLOAT


def test_no_such_group() -> None:
    with pytest.raises(PlanError, match="no group 'nope'"):
        plan_of(_net).group("nope")
