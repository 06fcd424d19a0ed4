"""Two engines side by side, by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fusewright.engine.attribution import describe_kernels, kernels_by_group
from fusewright.engine.describe import group_report
from fusewright.engine.findings import View
from fusewright.engine.report import EngineReport, GroupReport, KernelReport, total


@dataclass(frozen=True)
class Side:
    """What one engine spends on one thing."""

    kernels: int
    dtypes: tuple[str, ...]
    activation_bytes: int | None
    milliseconds: float | None


@dataclass(frozen=True)
class Row:
    """A group in both engines; a side is None where the engine has no such group."""

    name: str
    kind: str
    first: Side | None
    second: Side | None

    @property
    def differs(self) -> bool:
        """Whether the two spend different things on it; times always differ a little."""
        first, second = (
            side and (side.kernels, side.dtypes, side.activation_bytes)
            for side in (self.first, self.second)
        )
        return first != second


@dataclass(frozen=True)
class EngineComparison:
    """Two engines, their totals, and what each group became in either.

    Attributes:
        total: all kernels.
        outside: the kernels of no group.
        groups: every group of either; kernels of several groups count in each.
    """

    first: EngineReport
    second: EngineReport
    total: Row
    outside: Row
    groups: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "first": self.first.model,
            "second": self.second.model,
            "total": asdict(self.total),
            "outside": asdict(self.outside),
            "groups": [asdict(row) for row in self.groups],
        }


def compare_engines(first: EngineReport, second: EngineReport) -> EngineComparison:
    """Pairs the groups of two engines by name.

    Where one has no groups (a flat file), those of the other are looked for by the node that gave
    a group its name, its conv, product or norm.
    """
    groups = (_groups(first, second), _groups(second, first))
    names = dict.fromkeys((*groups[0][0], *groups[1][0]))
    rows = []
    for name in names:
        found = [side[0].get(name) for side in groups]
        kind = next(group.kind for group in found if group is not None)
        sides = [None if group is None else _side_of(group) for group in found]
        rows.append(Row(name, kind, *sides))
    outside = [_side([row for row in side[1] if not row.groups]) for side in groups]
    totals = [_side(report.kernels) for report in (first, second)]
    return EngineComparison(
        first,
        second,
        Row("all kernels", "", *totals),
        Row("outside groups", "", *outside),
        tuple(rows),
    )


def _groups(
    report: EngineReport, other: EngineReport
) -> tuple[Mapping[str, GroupReport], Sequence[KernelReport]]:
    """The groups of a report by name, and its kernels with these groups."""
    if report.groups or not other.groups:
        return {group.name: group for group in report.groups}, report.kernels
    kinds = {group.name: group.kind for group in other.groups}
    times = {row.kernel.name: row.milliseconds for row in report.kernels}
    known = {name: time for name, time in times.items() if time is not None}
    rows = describe_kernels([row.kernel for row in report.kernels], kinds, known)
    view = View(rows, None)
    owned = kernels_by_group(rows, None, kinds)
    found = {n: group_report(view, n, kinds[n], at) for n, at in owned.items() if at}
    return found, rows


def _side_of(group: GroupReport) -> Side:
    dtypes = group.reached or tuple(dict.fromkeys((*group.reads, *group.writes)))
    return Side(len(group.kernels), dtypes, group.activation_bytes, group.milliseconds)


def _side(rows: Sequence[KernelReport]) -> Side:
    times = [row.milliseconds for row in rows if row.milliseconds is not None]
    dtypes = dict.fromkeys(row.dtype for row in rows if row.dtype is not None)
    size = total(row.activation_bytes for row in rows) if rows else 0
    return Side(len(rows), tuple(dtypes), size, sum(times) if times else None)
