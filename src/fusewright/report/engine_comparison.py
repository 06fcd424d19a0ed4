"""Two engines side by side as tables: by group, with the difference of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import RenderableType
from rich.table import Table

from fusewright.engine.compare import EngineComparison, Row, Side
from fusewright.report.engine_tables import size_text, time_text
from fusewright.report.text import byte_count, plain_table, section, shorten

_NONE = "–"


def comparison_listing(
    comparison: EngineComparison, names: tuple[str, str], width: int, everything: bool
) -> list[RenderableType]:
    """Totals of two engines, and the groups that differ; on request all of them."""
    shown = [row for row in comparison.groups if everything or row.differs]
    parts = section("Two engines", _totals(comparison, names))
    same = len(comparison.groups) - len(shown)
    if shown:
        table = _table((*shown, comparison.outside), width - 2)
        if same:
            table.caption = f"and {same} groups that became the same in both"
            table.caption_justify = "left"
        parts += section("By group", table)
    elif comparison.groups:
        parts += section("By group", f"all {same} groups became the same in both")
    return parts


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
    percent = f" ({change / first:+.1%})" if first and change else ""
    return texts[0], texts[1], f"{sign}{shown(abs(change))}{percent}"


def _table(rows: Sequence[Row], width: int) -> Table:
    sides = [side for row in rows for side in (row.first, row.second) if side is not None]
    timed = any(side.milliseconds is not None for side in sides)
    columns = ("kernels", "dtypes", "bytes", *(("time",) if timed else ()))
    table = plain_table("group", "kind", *columns, right=("kernels", "bytes", "time"))
    for row in rows:
        both = (row.first, row.second)
        cells = [
            _pair(both, lambda side: str(side.kernels)),
            _pair(both, lambda side: " ".join(side.dtypes) or _NONE),
            _pair(both, lambda side: size_text(side.activation_bytes)),
        ]
        if timed:
            cells.append(_pair(both, lambda side: time_text(side.milliseconds)))
        table.add_row(shorten(row.name, width // 3), row.kind, *cells)
    return table


def _pair(sides: tuple[Side | None, Side | None], text: Callable[[Side], str]) -> str:
    first, second = (_NONE if side is None else text(side) for side in sides)
    return first if first == second else f"{first} → {second}"
