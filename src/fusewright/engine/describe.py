"""From a plan's rows to a report: groups, operators and findings joined to the kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fusewright.engine.attribution import (
    describe_kernels,
    groups_named,
    kernels_by_group,
    operator_types,
)
from fusewright.engine.findings import View, find_all
from fusewright.engine.kernels import Kernel
from fusewright.engine.outline import DEQUANTIZE, HEAVY, QDQ, Outline
from fusewright.engine.report import Finding, GroupReport, KernelReport, total


@dataclass(frozen=True)
class Description:
    """What `EngineReport` says of a plan."""

    kernels: tuple[KernelReport, ...]
    groups: tuple[GroupReport, ...]
    operators: Mapping[str, str]
    findings: tuple[Finding, ...]


def describe(
    kernels: Sequence[Kernel],
    outline: Outline | None = None,
    times: Mapping[str, float] | None = None,
) -> Description:
    """Joins a plan to the file it was built from.

    Args:
        kernels: the plan.
        outline: the file's; without it groups are those that the plan names, and less is found.
        times: kernel name → milliseconds.
    """
    kinds = groups_named(kernels) if outline is None else outline.kinds
    rows = describe_kernels(kernels, kinds, times)
    view = View(rows, outline)
    owned = kernels_by_group(rows, outline, kinds) if rows else {}
    groups = tuple(
        group_report(view, name, kinds[name], positions) for name, positions in owned.items()
    )
    operators = operator_types(outline.heavy(), rows) if outline is not None else {}
    return Description(rows, groups, operators, find_all(view))


def group_report(view: View, name: str, kind: str, positions: tuple[int, ...]) -> GroupReport:
    """One group, whose kernels are at these positions of the plan."""
    rows = [view.rows[i] for i in positions]
    reads, writes = _ends(view, positions)
    pairs = _pairs(view, name, positions)
    alone = [node for node in pairs if _is_alone(view, node)]
    times = [row.milliseconds for row in rows if row.milliseconds is not None]
    return GroupReport(
        name=name,
        kind=kind,
        planned=_planned(view.outline, name),
        reached=_distinct(row.dtype for row in rows if row.operation is not None and row.dtype),
        kernels=positions,
        merged=bool(rows) and not any(name in row.groups for row in rows),
        reads=reads,
        writes=writes,
        activation_bytes=total(row.activation_bytes for row in rows),
        qdq=len(pairs),
        qdq_alone=len(alone),
        milliseconds=sum(times) if times else None,
    )


def _is_alone(view: View, node: str) -> bool:
    owners = view.owners.get(node, ())
    return bool(owners) and all(view.is_pair_alone(i) for i in owners)


def _planned(outline: Outline | None, group: str) -> str | None:
    if outline is None:
        return None
    for node in outline.members(group):
        if node.op in HEAVY:
            activation, weight = outline.planned(node)
            if weight is not None:
                return weight if activation in (None, weight) else f"{activation}*{weight}"
    return None


def _pairs(view: View, group: str, positions: Sequence[int]) -> tuple[str, ...]:
    """Names of the Q/DQ nodes in a group and at its boundary, those on weights included."""
    outline = view.outline
    if outline is None:
        nodes = (name for i in positions for name in view.rows[i].kernel.nodes)
        return _distinct(name for name in nodes if view.op(name) in QDQ)
    found = []
    for node in outline.members(group):
        found += [node] if node.op in QDQ else []
        for other in outline.before(node):
            # A DequantizeLinear is read by this group, and its QuantizeLinear belongs with it.
            if other.op in DEQUANTIZE:
                found += [other, *(q for q in outline.before(other) if q.op in QDQ)]
        found += [other for other in outline.after(node) if other.op == "QuantizeLinear"]
    return _distinct(node.name for node in found)


def _ends(view: View, positions: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Data types of what comes into a group's kernels from others, and of what leaves them."""
    inside = set(positions)
    reads = _distinct(
        tensor.dtype
        for i in positions
        for tensor in view.rows[i].kernel.inputs
        if view.writers.get(tensor.name) not in inside
    )
    writes = _distinct(
        tensor.dtype
        for i in positions
        for tensor in view.rows[i].kernel.outputs
        if not set(view.readers.get(tensor.name, ())) <= inside or tensor.name not in view.readers
    )
    return reads, writes


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
