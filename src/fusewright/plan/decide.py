"""Deciding: which groups are quantized, each with its reason. Nothing is edited here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.errors import PlanError, UsageError
from fusewright.graph.dims import resolve
from fusewright.graph.walk import attribute
from fusewright.plan.demand import settle_unweighted
from fusewright.plan.plan import DECISIONS, FLOAT, INT8, Group, Plan, node_index, smooth_setting
from fusewright.target import TENSORRT, Target


@dataclass(frozen=True)
class Rules:
    """What the user asks for.

    Attributes:
        exclude: globs on group and node names, or `op:Conv` on operator types; what matches
            stays float.
        include: the same; where given, only what matches is quantized.
    """

    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    target: Target = TENSORRT


def decide(plan: Plan, rules: Rules = Rules()) -> None:
    """Sets decision and reason of every group.

    Raises:
        UsageError: a pattern that matches nothing.
    """
    nodes = node_index(plan.model.graph)
    excluded = _matching(plan, rules.exclude, "--exclude")
    included = _matching(plan, rules.include, "--include")
    for group in plan.groups:
        why_not = impossible(group, nodes, plan, rules.target)
        if why_not is None and id(group) in excluded:
            why_not = f"excluded by '{excluded[id(group)]}'"
        if why_not is None and rules.include and id(group) not in included:
            why_not = "not among what --include names"
        group.decision = FLOAT if why_not is not None else INT8
        group.reason = why_not or "its contract: " + _contract(group)
    settle(plan)


def keep_float(plan: Plan) -> None:
    """Takes every decision back to float: precision `fp32` collapses only."""
    for group in plan.groups:
        group.decision, group.reason = FLOAT, "precision fp32"


def settle(plan: Plan) -> None:
    """Takes INT8 from groups without weights whose output nobody reads in INT8."""
    for group in settle_unweighted(plan.groups, plan.model.graph, plan.model.opset):
        group.decision = FLOAT
        group.reason = (
            "without weights, and its output is not read in INT8: pairs on both sides or neither"
        )


def adopt(plan: Plan, theirs: Sequence[Group]) -> None:
    """Takes over decisions, reasons and switches of another plan of the same model.

    Groups without weights that lose their quantized readers by it become float.

    Raises:
        PlanError: the plans have other groups, or a decision that cannot be.
    """
    nodes, mine = node_index(plan.model.graph), {group.name: group for group in plan.groups}
    for other in theirs:
        group = mine.pop(other.name, None)
        if group is None:
            raise PlanError(f"{plan.model.path}: has no group '{other.name}' with these settings")
        problem = refusal(group, other.decision, nodes, plan) if other.apply else None
        if problem is not None:
            raise PlanError(f"{plan.model.path}: {problem}")
        group.decision, group.reason, group.apply = other.decision, other.reason, other.apply
        if other.smooth is not None and smooth_setting(other.smooth) is None:
            raise PlanError(
                f"{plan.model.path}: group '{group.name}' has smooth {other.smooth!r}; it is off,"
                " auto or a number from 0 to 1"
            )
        group.smooth = other.smooth
    if mine:
        raise PlanError(f"{plan.model.path}: the plan says nothing of group '{next(iter(mine))}'")
    settle(plan)


def refusal(
    group: Group,
    decision: str,
    nodes: dict[str, gs.Node],
    plan: Plan,
    choices: Sequence[str] = DECISIONS,
) -> str | None:
    """Why a group cannot have a decision of the user's, or None where it can.

    Args:
        nodes: the nodes of the plan's graph by name.
        choices: what the user can say.
    """
    if decision not in choices:
        return f"group '{group.name}': no decision '{decision}'; there are {', '.join(choices)}"
    why_not = impossible(group, nodes, plan) if decision == INT8 else None
    return why_not and f"group '{group.name}' cannot be {decision}: {why_not}"


def impossible(
    group: Group, nodes: dict[str, gs.Node], plan: Plan, target: Target = TENSORRT
) -> str | None:
    """Why the group cannot be INT8 on the target, or None where it can.

    Args:
        nodes: the nodes of the plan's graph by name.
        plan: the plan that it is of.
    """
    if not group.inputs_to_quantize:
        return group.spec.never_quantized
    if "head_size" in group.details:
        return _attention(group, target, plan.largest)
    layer = next(
        (
            nodes[m]
            for m in group.members
            if "w" in group.parameters
            and any(t.name == group.parameters["w"] for t in nodes[m].inputs)
        ),
        None,
    )
    if layer is None:
        return None
    weight = next(t for t in layer.inputs if t.name == group.parameters["w"])
    if np.dtype(weight.dtype) != np.float32:
        return f"weights of type {np.dtype(weight.dtype)}; INT8 here starts from float32"
    groups = int(attribute(layer, "group", plan.model.opset) or 1)
    return None if groups == 1 else _grouped(layer, weight.shape, groups, target)


def _attention(group: Group, target: Target, largest: Mapping[str, int]) -> str | None:
    """Why the target does not run this attention fused in INT8, or None where it does."""
    if "IsNaN" in group.ops:
        return f"a NaN guard between Softmax and v: {target.name} does not fuse attention around it"
    (head_size,) = resolve([group.details["head_size"]], largest)
    if head_size not in target.int8_head_sizes:
        sizes = ", ".join(map(str, target.int8_head_sizes))
        shown = group.details["head_size"]
        return f"head size {shown}: {target.name} fuses INT8 attention of sizes {sizes} only"
    for length in group.details["sequence"]:
        (size,) = resolve([length], largest)
        limit = f"{target.name} fuses INT8 attention up to {target.int8_sequence}"
        if size is None:
            return f"a sequence of '{length}' tokens, no maximum declared (--shapes): {limit}"
        if size > target.int8_sequence:
            return f"a sequence of {size} tokens: {limit}"
    return None


def _grouped(layer: gs.Node, shape: Sequence[int], groups: int, target: Target) -> str | None:
    first, second = int(shape[0]), int(shape[1])
    into, out = (second, first // groups) if layer.op == "Conv" else (first // groups, second)
    multiple = target.int8_group_multiple
    if into % multiple == 0 and out % multiple == 0:
        return None
    return (
        f"grouped convolution with {into} input and {out} output channels per group: {target.name}"
        f" runs INT8 only with multiples of {multiple}"
    )


def _contract(group: Group) -> str:
    read = [group.inputs[i] for i in group.inputs_to_quantize]
    inputs = ", ".join((*read, *(f"{pair.node}:{pair.slot}" for pair in group.interior)))
    axes = [
        "per tensor" if axis is None else f"per channel (axis {axis})"
        for name, axis in group.spec.weights.items()
        if name in group.parameters
    ]
    return f"inputs {inputs}" + (f"; weights {axes[0]}" if axes else "")


def _matching(plan: Plan, patterns: Sequence[str], option: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for pattern in patterns:
        hits = [g for g in plan.groups if _matches(pattern, _types(g, plan), (g.name, *g.nodes))]
        if not hits and not any(_matches(pattern, (u.op,), (u.name,)) for u in plan.unclaimed):
            raise UsageError(f"{option} '{pattern}' matches no group, node or operator")
        for group in hits:
            found.setdefault(id(group), pattern)
    return found


def _types(group: Group, plan: Plan) -> tuple[str, ...]:
    """Operator types of a group, normalized and as the file has them (a Gemm became a MatMul)."""
    written = (plan.model.file_ops[name] for name in group.nodes if name in plan.model.file_ops)
    return (*group.ops, group.kind, *written)


def _matches(pattern: str, types: Sequence[str], names: Sequence[str]) -> bool:
    if pattern.startswith("op:"):
        return any(fnmatchcase(op, pattern[3:]) for op in types)
    # A name may hold characters that globs give a meaning to, such as [0].
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)
