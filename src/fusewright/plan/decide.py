"""Deciding: which groups are quantized, each with its reason. Nothing is edited here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_graphsurgeon as gs

from fusewright.errors import PlanError, UsageError
from fusewright.graph.tied import tied_tables
from fusewright.plan.angles import Angles, find_angles, spoiled_angles
from fusewright.plan.demand import settle_unweighted
from fusewright.plan.limits import hint, impossible, inside, layer_of
from fusewright.plan.plan import (
    BLOCK_SIZE,
    DECISIONS,
    FLOAT,
    INT8,
    OFF,
    Group,
    Plan,
    node_index,
    smooth_setting,
)
from fusewright.target import FORMATS, TENSORRT, Target


@dataclass(frozen=True)
class Rules:
    """What the user asks for.

    Attributes:
        exclude: globs on group and node names, or `op:Conv` on operator types; what matches
            stays float.
        include: the same; where given, only what matches is quantized.
        target: what is built for.
        quantized: the format of quantized groups; None quantizes none but those that follow.
        group_precision: `PATTERN=FORMAT` with patterns as above, and FORMAT a decision; where
            several match, the last holds.
        per_tensor_weights: one scale for a whole weight.
        block_size: rows of an INT4 weight that share a scale.
    """

    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    target: Target = TENSORRT
    quantized: str | None = INT8
    group_precision: tuple[str, ...] = ()
    per_tensor_weights: bool = False
    block_size: int = BLOCK_SIZE


def decide(plan: Plan, rules: Rules = Rules()) -> None:
    """Sets decision, reason and hint of every group.

    Raises:
        UsageError: a pattern that matches nothing, or asks for what the target or none of its
            groups can be.
    """
    nodes = node_index(plan.model.graph)
    plan.target, plan.block_size = rules.target, rules.block_size
    plan.per_tensor_weights = rules.per_tensor_weights
    excluded = _matching(plan, rules.exclude, "--exclude")
    included = _matching(plan, rules.include, "--include")
    asked = _asked(plan, rules.group_precision, nodes)
    tied = {weight.name: table.name for table, weight in tied_tables(plan.model.graph)}
    angles = find_angles(plan.model.graph, plan.model.opset)
    for group in plan.groups:
        table = tied.get(group.parameters.get("w", ""))
        decision = asked.get(id(group), rules.quantized or FLOAT)
        group.asked = id(group) in asked or id(group) in included
        why_not: str | None
        if decision == FLOAT:
            why_not = "--group-precision" if id(group) in asked else f"precision {plan.precision}"
        else:
            why_not = impossible(group, nodes, plan, decision)
            why_not = why_not or _spoils_angles(group, nodes, angles, decision)
        if why_not is None and id(group) in excluded:
            why_not = f"excluded by '{excluded[id(group)]}'"
        if why_not is None and rules.include and id(group) not in included:
            why_not = "not among what --include names"
        if table is not None:
            if why_not is None and decision != INT8 and id(group) not in asked:
                why_not = f"its weight is the embedding '{table}': in float, one serves both"
            # What moves into the head's weight would part the two.
            group.smooth = OFF if group.smooth is None else group.smooth
        group.decision = FLOAT if why_not is not None else decision
        group.reason = why_not or "its contract: " + _contract(group, plan)
        _settle_details(group, nodes, plan)
    settle(plan)
    _note(plan, rules.quantized)


def _spoils_angles(
    group: Group, nodes: dict[str, gs.Node], angles: Mapping[int, Angles], decision: str
) -> str | None:
    """Why its layer's angles would be lost in a format, where the user has not asked for it."""
    layer = None if group.asked else layer_of(group, nodes)
    return None if layer is None else spoiled_angles(layer, angles, decision)


def _settle_details(group: Group, nodes: dict[str, gs.Node], plan: Plan) -> None:
    quantized = group.decision != FLOAT
    group.hint = hint(group, nodes, plan) if quantized else ""
    # Steps of FP8 grow with the values: an outlier takes nothing from the rest. INT4 has AWQ.
    if quantized and group.decision != INT8 and group.smooth is None:
        group.smooth = OFF


def _asked(plan: Plan, requests: Sequence[str], nodes: dict[str, gs.Node]) -> dict[int, str]:
    """Group → the decision that --group-precision asks for."""
    found: dict[int, str] = {}
    for request in requests:
        pattern, _, text = request.rpartition("=")
        decision = text.strip().lower()
        if not pattern or decision not in DECISIONS:
            raise UsageError(
                f"--group-precision '{request}' is not PATTERN=FORMAT with one of"
                f" {', '.join(DECISIONS)}"
            )
        option = f"--group-precision '{request}'"
        lacking = plan.target.lacks(decision) if decision != FLOAT else None
        if lacking is not None:
            raise UsageError(f"{option}: {lacking}")
        hits = matched(plan, pattern)
        if not hits:
            raise UsageError(f"{option} matches no group")
        problems = [
            impossible(group, nodes, plan, decision) if decision != FLOAT else None
            for group in hits
        ]
        if all(problems):
            raise UsageError(
                f"{option}: group '{hits[0].name}' cannot be {decision}: {problems[0]}"
            )
        found.update((id(group), decision) for group in hits)
    return found


def _note(plan: Plan, wanted: str | None) -> None:
    """Says what the plan's formats and the target ask for beyond the decisions."""
    engine, opset = plan.target.engine, plan.model.opset
    found = []
    if wanted is not None and not any(group.is_quantized for group in plan.groups):
        reasons = Counter(group.reason for group in plan.groups if group.spec.weights)
        why = max(reasons, key=reasons.__getitem__, default="no group has weights")
        found.append(f"nothing is quantized to {FORMATS[wanted].title}: {why}")
    if not engine.local_functions:
        found.append(f"{plan.target} parses no local functions: groups stay nodes")
    if opset > engine.opsets[1]:
        found.append(f"opset {opset}: {plan.target} reads up to {engine.opsets[1]}")
    for name in FORMATS:
        if any(group.decision == name for group in plan.groups):
            needs = plan.target.needs(name)
            found += [] if needs is None else [needs]
            if not plan.target.multiplies(name):
                title = FORMATS[name].title
                found.append(f"{plan.target} restores {title} at run time and multiplies in half")
    plan.model.notes += [note for note in found if note not in plan.model.notes]


def keep_float(plan: Plan) -> None:
    """Takes every decision back to float, for a precision that quantizes nothing."""
    for group in plan.groups:
        group.leave_float(f"precision {plan.precision}")


def settle(plan: Plan) -> None:
    """Takes its format from groups without weights whose output nobody reads in it."""
    for group in settle_unweighted(plan):
        title = FORMATS[group.decision].title
        group.decision = FLOAT
        group.reason = (
            f"without weights, and its output is not read in {title}: pairs on both sides or"
            " neither"
        )


def adopt(plan: Plan, theirs: Plan) -> None:
    """Takes over what another plan of the same model decides, in place.

    Groups without weights that lose their quantized readers by it become float.

    Raises:
        PlanError: the plans have other groups, or a decision that cannot be.
    """
    nodes, mine = node_index(plan.model.graph), {group.name: group for group in plan.groups}
    for other in theirs.groups:
        group = mine.pop(other.name, None)
        if group is None:
            raise PlanError(f"{plan.model.path}: has no group '{other.name}' with these settings")
        problem = None
        if other.apply:
            problem = refusal(group, other.decision, nodes, plan) or details_refusal(
                group, other.inputs_to_quantize, other.prepared_as, nodes, plan
            )
        if problem is not None:
            raise PlanError(f"{plan.model.path}: {problem}")
        group.asked = group.asked or other.asked or other.decision != group.decision
        group.decision, group.reason, group.apply = other.decision, other.reason, other.apply
        if other.smooth is not None and smooth_setting(other.smooth) is None:
            raise PlanError(
                f"{plan.model.path}: group '{group.name}' has smooth {other.smooth!r}; it is off,"
                " auto or a number from 0 to 1"
            )
        group.smooth, group.prepared_as = other.smooth, other.prepared_as
        group.inputs_to_quantize = other.inputs_to_quantize
    plan.residual = theirs.residual
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
    why_not = impossible(group, nodes, plan, decision) if decision in FORMATS else None
    return why_not and f"group '{group.name}' cannot be {decision}: {why_not}"


def details_refusal(
    group: Group,
    inputs: Sequence[int],
    prepared_as: str | None,
    nodes: dict[str, gs.Node],
    plan: Plan,
) -> str | None:
    """Why a group cannot have what a search says beside its decision, or None where it can.

    Args:
        inputs: which get a pair: those of its contract, or all but the skip.
        prepared_as: as in `Group`.
        nodes: the nodes of the plan's graph by name.
    """
    contract = group.inputs_to_quantize
    allowed = {contract, contract[:1]} if group.has_skip else {contract}
    if tuple(inputs) not in allowed:
        choices = " or ".join(str(list(choice)) for choice in sorted(allowed))
        return f"group '{group.name}' has inputs_to_quantize {list(inputs)}; it can be {choices}"
    if prepared_as is None:
        return None
    problem = refusal(group, prepared_as, nodes, plan, tuple(FORMATS))
    return problem and f"prepared_as: {problem}"


def _contract(group: Group, plan: Plan) -> str:
    form = FORMATS[group.decision]
    stored = [axis for name, axis in group.spec.weights.items() if name in group.parameters]
    if form.weights_only:
        return f"weights in {form.title}, blocks of up to {plan.block_size}; inputs float"
    read = [group.inputs[i] for i in group.inputs_to_quantize]
    inputs = ", ".join((*read, *(f"{pair.node}:{pair.slot}" for pair in group.interior)))
    per_tensor = plan.per_tensor_weights
    axes = [
        "per tensor" if axis is None or per_tensor else f"per channel (axis {axis})"
        for axis in stored
    ]
    if form.block is not None:
        axes = [f"in blocks of {form.block}"]
    within = inside(group, plan)
    weights = f"; weights {axes[0]}" if axes else ""
    return f"inputs {inputs}{weights}" + ("" if within is None else f"; {within}")


def _matching(plan: Plan, patterns: Sequence[str], option: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for pattern in patterns:
        hits = matched(plan, pattern)
        if not hits and not any(_matches(pattern, (u.op,), (u.name,)) for u in plan.unclaimed):
            raise UsageError(f"{option} '{pattern}' matches no group, node or operator")
        for group in hits:
            found.setdefault(id(group), pattern)
    return found


def matched(plan: Plan, pattern: str) -> list[Group]:
    """The groups that a pattern of `Rules` names."""
    return [g for g in plan.groups if _matches(pattern, _types(g, plan), (g.name, *g.nodes))]


def _types(group: Group, plan: Plan) -> tuple[str, ...]:
    """Operator types of a group, normalized and as the file has them (a Gemm became a MatMul)."""
    written = (plan.model.file_ops[name] for name in group.nodes if name in plan.model.file_ops)
    return (*group.ops, group.kind, *written)


def _matches(pattern: str, types: Sequence[str], names: Sequence[str]) -> bool:
    if pattern.startswith("op:"):
        return any(fnmatchcase(op, pattern[3:]) for op in types)
    # A name may hold characters that globs give a meaning to, such as [0].
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)
