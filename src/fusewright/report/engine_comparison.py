"""Two engines side by side as tables: by group, with the difference of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import RenderableType
from rich.table import Table

from fusewright.engine.compare import EngineComparison, Row, Side
from fusewright.report.engine_tables import size_text, time_text
from fusewright.report.text import byte_count, counted, entry, plain_table, section

_NONE = "–"
# Groups that are listed unless all are asked for.
_SHOWN = 12


def comparison_listing(
    comparison: EngineComparison, names: tuple[str, str], everything: bool
) -> list[RenderableType]:
    """Totals of two engines, and the groups that differ most; on request all groups."""
    parts = section("Two engines", _totals(comparison, names))
    if not comparison.groups:
        return parts
    differing = sorted((row for row in comparison.groups if row.differs), key=_weight)
    shown = comparison.groups if everything else differing[:_SHOWN]
    lines = [_row(row) for row in shown]
    if comparison.outside.first != comparison.outside.second or everything:
        lines.append(_row(comparison.outside))
    same = len(comparison.groups) - len(differing)
    if len(differing) > len(shown):
        lines.append(f"and {len(differing) - len(shown)} more that differ less (-v lists them)")
    if same:
        lines.append(f"{counted(same, 'group')} became the same in both")
    return parts + section("By group", *lines)


def _weight(row: Row) -> int:
    """Sorts by how many bytes apart, most first."""
    sizes = [side.activation_bytes or 0 for side in (row.first, row.second) if side is not None]
    return -abs(sizes[0] - sizes[-1]) if len(sizes) == 2 else -sum(sizes)


def _totals(comparison: EngineComparison, names: tuple[str, str]) -> Table:
    table = plain_table("", *names, "difference", right=(*names, "difference"))
    first, second = comparison.first, comparison.second
    counts = [(side.operations, len(side.kernels)) for side in (first, second)]
    table.add_row("kernels", *_difference([float(n) for _, n in counts], "{:.0f}".format))
    for operation in sorted({*counts[0][0], *counts[1][0]}):
        types = [side.get(operation, {}) for side, _ in counts]
        texts = [", ".join(f"{n} {t}" for t, n in kinds.items()) or _NONE for kinds in types]
        table.add_row(operation, *texts, "" if texts[0] == texts[1] else "differs")
    sizes = [report.activation_bytes for report in (first, second)]
    table.add_row("activations", *_difference(sizes, byte_count))
    weights = [report.weight_bytes for report in (first, second)]
    table.add_row("weights", *_difference(weights, byte_count))
    times = [report.milliseconds for report in (first, second)]
    if any(time is not None for time in times):
        table.add_row("time", *_difference(times, time_text))
    return table


def _difference(
    values: Sequence[float | None], shown: Callable[[float], str]
) -> tuple[str, str, str]:
    first, second = values
    texts = [_NONE if value is None else shown(value) for value in values]
    if first is None or second is None:
        return texts[0], texts[1], _NONE
    change = second - first
    sign = "+" if change > 0 else "−" if change < 0 else ""
    percent = f" ({sign}{abs(change / first):.1%})" if first and change else ""
    return texts[0], texts[1], f"{sign}{shown(abs(change))}{percent}"


def _row(row: Row) -> RenderableType:
    """Its name, and below it what it was and is; what did not change is told once."""
    both = (row.first, row.second)
    parts = [
        f"kernels {_pair(both, lambda side: str(side.kernels))}",
        _pair(both, lambda side: " ".join(side.dtypes) or _NONE),
        _pair(both, lambda side: size_text(side.activation_bytes)),
    ]
    if any(side is not None and side.milliseconds is not None for side in both):
        parts.append(_pair(both, lambda side: time_text(side.milliseconds)))
    return entry(f"{row.name}  {row.kind}".rstrip(), "; ".join(parts))


def _pair(sides: tuple[Side | None, Side | None], text: Callable[[Side], str]) -> str:
    first, second = (_NONE if side is None else text(side) for side in sides)
    return first if first == second else f"{first} → {second}"
