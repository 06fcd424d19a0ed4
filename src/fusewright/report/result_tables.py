"""The closing report of a run, from its parts: heavy ops, accuracy, seconds, what was undone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from fusewright.report.text import (
    byte_count,
    counted,
    entry,
    plain_table,
    section,
    shorten,
    shorten_quoted,
    some_of,
    without_names,
)
from fusewright.verify import Comparison, OutputError
from fusewright.verify.distance import BEHIND, IN_FRONT_OF, SELECTED_BY, decibels

_NAMES_SHOWN = 2


def heavy_section(rows: Sequence[Mapping[str, Any]], width: int) -> list[RenderableType]:
    """Heavy ops quantized by type, and those kept in float grouped by reason.

    Args:
        rows: `op`, `name`, `decision` and `reason` of each heavy op.
        width: columns there are.
    """
    if not rows:
        return section("Heavy ops", "none")
    total = Counter(str(row["op"]) for row in rows)
    quantized = Counter(str(row["op"]) for row in rows if row["decision"] != "float")
    lines = ", ".join(f"{quantized[op]} of {count} {op}" for op, count in total.items())
    kept: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["decision"] == "float":
            kept.setdefault(without_names(row["reason"]), []).append(row)
    ordered = sorted(kept.items(), key=lambda item: -len(item[1]))
    return section(
        "Heavy ops",
        f"quantized: {lines}",
        *(_kept(sort, same, width) for sort, same in ordered),
    )


def _kept(sort: str, rows: Sequence[Mapping[str, Any]], width: int) -> RenderableType:
    reasons = {row["reason"] for row in rows}
    reason = reasons.pop() if len(reasons) == 1 else sort
    names = [row["name"] for row in rows]
    room = (width - 12) // min(len(names), _NAMES_SHOWN) - 8
    return entry(
        f"kept float: {len(rows)}",
        shorten_quoted(reason, width // 2),
        some_of(names, _NAMES_SHOWN, room),
    )


def accuracy_table(comparison: Comparison, width: int) -> Table:
    """SQNR and relative error of every output; of one that holds no floats, what differs.

    Where there are several samples, the one in the middle and the one that is furthest off too.
    """
    each = any(len(output.places) > 1 for output in comparison.outputs)
    numbers = ("SQNR", *(("median", "worst sample") if each else ()), "relative error")
    table = plain_table("output", *numbers, right=numbers)
    for output in comparison.outputs:
        name = shorten(output.name, max(width - (66 if each else 40), 16))
        name += _MARKS.get(output.role, "")
        sqnr = _sqnr(output, output.relative) if output.is_float else "–"
        table.add_row(name, sqnr, *(_by_sample(output) if each else ()), _error(output))
    return table


def measured_over(comparison: Comparison) -> str:
    """` over 4 samples`; nothing where the samples were not told apart."""
    count = max((len(output.samples) for output in comparison.outputs), default=0)
    rows = max((sum(map(len, output.rows)) for output in comparison.outputs), default=0)
    of_batches = f" of {rows} rows in all" if rows > count else ""
    return f" over {counted(count, 'sample')}{of_batches}" if count else ""


# Behind a name in the table; what they say stands below it.
_MARKS = {BEHIND: " *", IN_FRONT_OF: " >", SELECTED_BY: " <"}


def selection_lines(comparison: Comparison) -> list[str]:
    """What the two models select otherwise and by which tensors, and what the marks mean."""
    lines = []
    for found in comparison.selections:
        how = f"otherwise on {found.samples} of" if found.samples else "the same on all"
        text = f"{found.label} selects {how} {counted(found.of, 'sample')}"
        lines.append(f"{text}{_goes_by(found.label, comparison)}")
    known = {found.label for found in comparison.selections}
    beside = (o.selection for o in comparison.outputs if o.role == IN_FRONT_OF)
    for label in dict.fromkeys(label for label in beside if label not in known):
        lines.append(f"{label} is not run{_goes_by(label, comparison)}")
    roles = {output.role for output in comparison.outputs}
    return lines + [said for role, said in _MEANINGS.items() if role in roles]


def _goes_by(label: str, comparison: Comparison) -> str:
    rows = comparison.outputs
    names = [o.name for o in rows if o.role == IN_FRONT_OF and o.selection == label]
    return f"; in front of it: {', '.join(names)}" if names else ""


_MEANINGS = {
    BEHIND: "* compared with what the reference selects",
    IN_FRONT_OF: "> in front of it",
    SELECTED_BY: "< holds nothing but what is selected",
}


def described(output: OutputError) -> str:
    """`output 'scores'`, or `tensor 'x' in front of TopK 'topk'`."""
    if output.role == IN_FRONT_OF:
        return f"tensor '{output.name}' {output.role} {output.selection}"
    return f"output '{output.name}'"


def _error(output: OutputError) -> str:
    if not math.isfinite(output.relative):
        return "not comparable"
    if not output.is_float:
        return f"{output.relative:.2%} of elements differ"
    return f"{output.relative:.2e}" if output.relative else "identical"


def _by_sample(output: OutputError) -> tuple[str, str]:
    worst = output.worst_sample
    if worst is None:
        return "–", "–"
    said = _sqnr(output, worst.error)
    return _sqnr(output, output.median), said if worst.error == 0 else f"{said} ({worst})"


def _sqnr(output: OutputError, error: float) -> str:
    """An error in dB, that of integers in percent."""
    if not math.isfinite(error):
        return "–"
    if not output.is_float:
        return f"{error:.2%}"
    return f"{decibels(error):.1f} dB" if error else "–"


def cost_table(seconds: Mapping[str, float], peak_bytes: int) -> Table:
    """Seconds per stage and in all, and the largest memory of the process."""
    table = plain_table("stage", "seconds", right=("seconds",))
    for stage, took in seconds.items():
        table.add_row(stage, f"{took:.2f}")
    table.add_row("in all", f"{sum(seconds.values()):.2f}", style="bold")
    table.add_row("peak memory", byte_count(peak_bytes))
    return table


def smooth_lines(events: Iterable[Any]) -> list[str]:
    """How many inputs of Linears were smoothed, and the others by sort of reason."""
    events = [event for event in events if event.stage == "smooth"]
    if not any(event.what == "pass" for event in events):
        return []  # there was no place for it, or it is off
    found = [event for event in events if event.name == "SmoothQuant"]
    done = [event for event in found if event.what == "match"]
    kept = Counter(without_names(e.detail) for e in found if e.what == "miss")
    lines = [f"{len(done)} of {counted(len(found), 'input')} of quantized Linears smoothed"]
    return lines + [f"left: {count}, {reason}" for reason, count in kept.most_common()]


def undone_lines(events: Iterable[Any]) -> list[str]:
    """Rewrites that were taken back: stage, name and detail of each event."""
    return [f"{e.stage}: {e.name} changed the results and was undone: {e.detail}" for e in events]


def headline(model: Any, groups: int, samples: int, settings: str) -> str:
    """`model.onnx: 10 groups, int8 by mse over 256 samples`."""
    over = f" over {counted(samples, 'sample')}" if samples else ""
    return f"{model}: {counted(groups, 'group')}, {settings}{over}"
