"""Giving way to the linter: the groups whose pairs break a rule stay float, and say why."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from fusewright.plan.decide import settle
from fusewright.plan.plan import Group, Plan, node_index
from fusewright.quantize.lint import Violation
from fusewright.quantize.placement import Placement

WHY = "left float by the Q/DQ linter, for a fault of Fusewright"


def relent(plan: Plan, violations: Sequence[Violation], *, wholly: bool = False) -> list[Group]:
    """Takes the groups behind violations back to float, each with the rule as its reason.

    Where a violation is near no quantized group, all of them.

    Args:
        plan: its graph holds the pairs.
        wholly: all quantized groups, wherever the violations are.

    Returns:
        The groups that the violations took it from; those without weights that lose their
        quantized readers by it become float too. Empty where nothing is left that could.
    """
    nodes = node_index(plan.model.graph)
    quantized = [group for group in plan.groups if group.reads_quantized]
    owners = {id(nodes[name]): group for group in quantized for name in group.members}
    found: dict[str, Group] = {}
    for violation in violations:
        near = [] if wholly else _nearest(nodes[violation.node], owners)
        for group in near or quantized:
            if group.name not in found:
                group.leave_float(f"{WHY}: {violation.text}")
                found[group.name] = group
    settle(plan)
    return list(found.values())


def _nearest(node: gs.Node, owners: dict[int, Group]) -> list[Group]:
    """The group of a node, else those that are reached first with the flow, else against it."""
    return _reached(node, owners, forward=True) or _reached(node, owners, forward=False)


def _reached(start: gs.Node, owners: dict[int, Group], *, forward: bool) -> list[Group]:
    found: dict[str, Group] = {}
    waiting, seen = [start], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if id(node) in owners:
            found[owners[id(node)].name] = owners[id(node)]
        elif forward:
            waiting += [reader for tensor in node.outputs for reader in tensor.outputs]
        else:
            waiting += [maker for tensor in node.inputs for maker in tensor.inputs]
    return list(found.values())


def renamed_scales(after: Placement, before: Placement) -> dict[str, str]:
    """Scale of a placement with fewer groups → the scale that its tensors had before.

    Fewer pairs share fewer scales: all that one scale observes now was observed by one.
    """
    formats = before.formats
    known = {
        (tensor, formats[scale]): scale
        for scale, tensors in before.observe.items()
        for tensor in tensors
    }
    now = after.formats
    return {scale: known[tensors[0], now[scale]] for scale, tensors in after.observe.items()}
