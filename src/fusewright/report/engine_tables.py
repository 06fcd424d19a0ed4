"""An engine's plan as tables: kernels, data types, bytes, groups, and what could be better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table

from fusewright.engine.advice import ADVICE
from fusewright.engine.report import GENERATED, EngineReport, Finding, GroupReport, KernelReport
from fusewright.engine.report import total as sum_of
from fusewright.report.text import (
    byte_count,
    counted,
    entry,
    plain_table,
    section,
    shorten,
    some_of,
)

_OUTSIDE = "outside any group"
_NONE = "–"
# Groups or nodes of one kernel that are named; JSON has them all.
_NAMES = 4
_NAME_WIDTH = 90


def engine_listing(report: EngineReport, width: int, everything: bool) -> list[RenderableType]:
    """Summary, kernels by kind of group, findings; on request every group, kernel and finding.

    Args:
        report: what was built or read.
        width: columns there are.
        everything: list them one by one.
    """
    title = f"Engine by {report.backend} {report.version}".rstrip()
    parts = section(title, _summary(report))
    if report.kernels:
        parts += section("Kernels by kind of group", _by_kind(report))
    if everything and report.groups:
        parts += section("Groups", *map(_group, report.groups))
    if everything and report.kernels:
        parts += section("Kernels", *(_kernel(n, row) for n, row in enumerate(report.kernels, 1)))
    if report.findings:
        parts += section("What could be better", *_findings(report, width - 6, everything))
    if report.notes:
        parts += section("Notes", *report.notes)
    return parts


def time_text(milliseconds: float | None) -> str:
    """`0.123 ms`, or a dash."""
    return _NONE if milliseconds is None else f"{milliseconds:.3f} ms"


def size_text(size: int | None) -> str:
    """`1.5 MB`, or a dash."""
    return _NONE if size is None else byte_count(size)


def _summary(report: EngineReport) -> Table:
    activations = report.activation_bytes
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("kernels", str(len(report.kernels)) if report.kernels else "not known")
    for operation, types in report.operations.items():
        table.add_row(operation, _types(types))
    generated = sum(kind == GENERATED for kind in report.operators.values())
    if generated:
        table.add_row(GENERATED, f"{counted(generated, 'heavy op')} inside pointwise kernels")
    table.add_row("activations", "not known" if activations is None else byte_count(activations))
    table.add_row("weights", byte_count(report.weight_bytes))
    if report.milliseconds is not None:
        table.add_row("time", time_text(report.milliseconds))
    if report.engine_bytes:
        table.add_row("engine", byte_count(report.engine_bytes))
        table.add_row("built in", f"{report.seconds:.1f} s")
    return table


def _by_kind(report: EngineReport) -> Table:
    columns = ("groups", "kernels", "bytes", "conv, gemm and attention")
    table = plain_table("kind", *columns, right=columns[:3], wrapped=columns[3:])
    kinds = {group.name: group.kind for group in report.groups}
    for kind, count in Counter(kinds.values()).items():
        at = {i for group in report.groups if group.kind == kind for i in group.kernels}
        rows = [report.kernels[i] for i in sorted(at)]
        table.add_row(kind, str(count), *_cells(rows))
    outside = [row for row in report.kernels if not row.groups]
    if outside:
        table.add_row(_OUTSIDE, _NONE, *_cells(outside))
    shared = sum(len({kinds.get(name) for name in row.groups}) > 1 for row in report.kernels)
    if shared:
        table.caption = f"{counted(shared, 'kernel')} of several kinds, counted in each"
        table.caption_justify = "left"
    return table


def _cells(rows: Sequence[KernelReport]) -> tuple[str, str, str]:
    size = sum_of(row.activation_bytes for row in rows)
    found = Counter(f"{r.operation} {r.dtype}" for r in rows if r.operation is not None)
    return str(len(rows)), size_text(size), _types(found)


def _types(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _group(group: GroupReport) -> RenderableType:
    """Its name, and below it what it became."""
    parts = [
        f"{'merged into ' if group.merged else ''}kernels {_ranges(group.kernels) or _NONE}",
        f"{_types_of(group.reads)} → {_types_of(group.writes)}",
        size_text(group.activation_bytes),
    ]
    if group.qdq:
        alone = f"{group.qdq_alone} of {group.qdq} Q/DQ alone"
        parts.append(alone if group.qdq_alone else f"{group.qdq} Q/DQ absorbed")
    if group.milliseconds is not None:
        parts.append(time_text(group.milliseconds))
    return entry(f"{group.name}  {group.kind} {_became(group)}".rstrip(), "; ".join(parts))


def _became(group: GroupReport) -> str:
    reached = ", ".join(group.reached)
    missed = group.planned is not None and group.reached and group.planned not in group.reached
    return f"{reached}, not {group.planned}" if missed else reached


def _ranges(positions: Sequence[int]) -> str:
    """`1-3, 7`: positions in the plan as the list of kernels numbers them."""
    runs: list[list[int]] = []
    for number in (position + 1 for position in positions):
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _kernel(number: int, row: KernelReport) -> RenderableType:
    """Its name and figures, and below it whose it is."""
    types = (
        dict.fromkeys(t.dtype for t in ends) for ends in (row.kernel.inputs, row.kernel.outputs)
    )
    parts = [
        f"{row.operation} {row.dtype}" if row.operation else row.kernel.type,
        " → ".join(map(_types_of, types)),
        size_text(row.activation_bytes),
    ]
    if row.milliseconds is not None:
        parts.append(time_text(row.milliseconds))
    heading = f"#{number} {row.kernel.name}  {'; '.join(part for part in parts if part)}"
    names = row.groups or tuple(name.split(" | ")[0] for name in row.nodes)
    owners = some_of(names, _NAMES, _NAME_WIDTH) or "nothing of the file"
    about = "" if row.groups else "outside groups: "
    return entry(heading, f"{about}{'like ' if row.inferred else ''}{owners}")


def _types_of(names: Iterable[str]) -> str:
    return ", ".join(names) or _NONE


def _findings(report: EngineReport, width: int, everything: bool) -> list[RenderableType]:
    by_cause: dict[str, list[Finding]] = {}
    for finding in report.findings:
        by_cause.setdefault(finding.cause, []).append(finding)
    # What cannot be mended goes last; it is there to explain the plan.
    causes = sorted(by_cause, key=lambda cause: ADVICE[cause].inherent)
    return [_finding(cause, by_cause[cause], width, everything) for cause in causes]


def _finding(cause: str, found: list[Finding], width: int, everything: bool) -> RenderableType:
    advice = ADVICE[cause]
    kernels = {i for finding in found for i in finding.kernels}
    sizes = {finding.kernels: finding.activation_bytes for finding in found}
    size = sum_of(sizes.values())
    heading = f"{advice.title}: {counted(len(kernels), 'kernel')}"
    heading += f", {byte_count(size)}" if size is not None else ""
    shown = found if everything else found[:1] if not advice.inherent else []
    lines = [_where(finding, width) for finding in shown]
    if len(found) > len(shown) and shown:
        lines[-1] += f", and {len(found) - len(shown)} more"
    return entry(heading, advice.broke, f"mend: {advice.mend}", *lines)


def _where(finding: Finding, width: int) -> str:
    names = finding.groups or finding.nodes
    who = shorten(names[0].split(" | ")[-1], width // 2) if names else ""
    numbers = ", ".join(f"#{i + 1}" for i in finding.kernels[:4])
    numbers += ", …" if len(finding.kernels) > 4 else ""
    detail = f" ({finding.detail})" if finding.detail else ""
    return f"at {numbers} {who}{detail}"
