"""An engine's plan as tables: kernels, data types, bytes, and the groups they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from rich.console import RenderableType
from rich.table import Table

from fusewright.engine.report import EngineReport, KernelReport
from fusewright.report.text import byte_count, counted, plain_table, section, shorten

_OUTSIDE = "outside any group"


def engine_listing(
    report: EngineReport, kinds: Mapping[str, str], width: int, every_kernel: bool
) -> list[RenderableType]:
    """Summary, kernels by kind of group, and on request every kernel.

    Args:
        report: what was built.
        kinds: name of each group call of the model → its kind.
        width: columns there are.
        every_kernel: also list the kernels one by one.
    """
    title = f"Engine by {report.backend} {report.version}"
    parts = section(title, _summary(report))
    if report.kernels:
        parts += section("Kernels by kind of group", _by_kind(report, kinds))
    if every_kernel and report.kernels:
        parts += section("Kernels", _kernels(report.kernels, width - 2))
    if report.notes:
        parts += section("Notes", *report.notes)
    return parts


def _summary(report: EngineReport) -> Table:
    activations = report.activation_bytes
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("kernels", str(len(report.kernels)) if report.kernels else "not known")
    for operation, types in report.operations.items():
        table.add_row(operation, _types(types))
    generated = sum(kind == "generated" for kind in report.operators.values())
    if generated:
        table.add_row("generated", f"{counted(generated, 'heavy op')} inside pointwise kernels")
    table.add_row("activations", "not known" if activations is None else byte_count(activations))
    table.add_row("weights", byte_count(report.weight_bytes))
    table.add_row("engine", byte_count(report.engine_bytes))
    table.add_row("built in", f"{report.seconds:.1f} s")
    return table


def _by_kind(report: EngineReport, kinds: Mapping[str, str]) -> Table:
    columns = ("groups", "kernels", "conv, gemm and attention")
    table = plain_table("kind", *columns, right=columns[:2], wrapped=columns[2:])
    groups = Counter(kinds.values())
    for kind, count in groups.items():
        rows = [r for r in report.kernels if any(kinds.get(name) == kind for name in r.groups)]
        table.add_row(kind, str(count), str(len(rows)), _operations(rows))
    outside = [row for row in report.kernels if not row.groups]
    if outside:
        table.add_row(_OUTSIDE, "–", str(len(outside)), _operations(outside))
    shared = sum(len({kinds.get(name) for name in row.groups}) > 1 for row in report.kernels)
    if shared:
        table.caption = f"{counted(shared, 'kernel')} of several kinds, counted in each"
        table.caption_justify = "left"
    return table


def _operations(rows: Iterable[KernelReport]) -> str:
    found = Counter(f"{r.operation} {r.dtype}" for r in rows if r.operation is not None)
    return _types(found)


def _types(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _kernels(rows: Iterable[KernelReport], width: int) -> Table:
    table = plain_table("#", "kernel", "type", "dtype", "groups", right=("#",), wrapped=("groups",))
    for number, row in enumerate(rows, 1):
        # In brackets where TensorRT names no node and the neighbours' stand in.
        names = [shorten(name, width // 3) for name in row.groups]
        groups = ", ".join(names) if names else "–"
        table.add_row(
            str(number),
            shorten(row.kernel.name, width // 3),
            row.operation or row.kernel.type,
            row.dtype or "",
            f"({groups})" if row.inferred and names else groups,
        )
    return table
