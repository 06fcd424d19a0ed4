"""A plan as tables: its groups, their decisions and reasons, and what no group claimed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fusewright.plan.plan import Group, Plan
from fusewright.report.text import (
    counted,
    entry,
    plain_table,
    section,
    shorten,
    shorten_quoted,
    some_of,
)

# Beginning of a reason that only repeats the contract.
_BY_CONTRACT = "its contract: "
_LABELS = 12
_HINTED = 3


def kinds_table(plan: Plan) -> Table:
    """Groups by kind: how many, how many quantized, how many in float."""
    numbers = ("groups", "quantized", "float")
    table = plain_table("kind", *numbers, right=numbers)
    for kind, count in plan.counts().items():
        quantized = sum(group.is_quantized for group in plan.groups if group.kind == kind)
        table.add_row(kind, *(str(n or "–") for n in (count, quantized, count - quantized)))
    return table


def hint_lines(plan: Plan, width: int, verbose: bool = False) -> list[RenderableType]:
    """Where quantizing seldom pays: how many groups, or with `verbose` which and why."""
    hinted = [group for group in plan.groups if group.hint and group.is_quantized]
    if not hinted:
        return []
    if not verbose:
        return [f"quantizing seldom pays in {counted(len(hinted), 'group')} (-v: which)"]
    names: dict[str, list[str]] = {}
    for group in hinted:
        names.setdefault(group.hint, []).append(group.name)
    shown = width // (_HINTED + 1)
    return [entry(hint, some_of(same, _HINTED, shown)) for hint, same in names.items()]


def plan_listing(plan: Plan, width: int, verbose: bool = False) -> list[RenderableType]:
    """Every group with nodes, contract, decision and reason; then what no group claimed."""
    quantized = sum(group.is_quantized for group in plan.groups)
    parts: list[RenderableType] = [
        Text(
            f"{plan.model.path}: {counted(len(plan.groups), 'group')}, {quantized} quantized,"
            f" {counted(len(plan.unclaimed), 'heavy op')} unclaimed"
        )
    ]
    if plan.groups:
        hints = hint_lines(plan, width, verbose)
        parts += section("Groups by kind", kinds_table(plan), *hints)
        parts += section("Groups", *(_block(group, width - 2) for group in plan.groups))
    left = [_reasoned(u.op, u.name, u.reason, width - 2) for u in plan.unclaimed]
    parts += section("Heavy ops that no group claimed", *(left or ("none",)))
    if plan.model.notes:
        parts += section("Notes", *plan.model.notes)
    return parts


def misses_listing(misses: Sequence[tuple[str, str, str]], width: int) -> list[RenderableType]:
    """Near misses: (pattern, node, what was expected and found)."""
    entries = [_reasoned(pattern, node, why, width - 2) for pattern, node, why in misses]
    return section("Near misses", *(entries or ("none",)))


def contract_text(group: Group) -> str:
    """Which inputs a group's contract quantizes, and the axes of its weights."""
    inputs = ", ".join(map(str, group.inputs_to_quantize))
    if not inputs:
        return "quantizes nothing"
    axes = [
        f"{name} {'per tensor' if axis is None else f'axis {axis}'}"
        for name, axis in group.spec.weights.items()
        if name in group.parameters
    ]
    return f"inputs {{{inputs}}}" + "".join(f", weights {text}" for text in axes)


def _block(group: Group, width: int) -> RenderableType:
    room = width - len(group.kind) - len(group.decision) - 4
    decision = group.decision if group.apply else "off"
    heading = Text.assemble(
        (group.kind, "bold"), "  ", shorten(group.name, room), "  ", (decision, _style(group))
    )
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("nodes", some_of(group.nodes, len(group.nodes), width - _LABELS))
    if group.reason.startswith(_BY_CONTRACT):
        facts.add_row("contract", group.reason.removeprefix(_BY_CONTRACT))
    else:
        facts.add_row("contract", contract_text(group))
        facts.add_row("reason", group.reason)
    return Lines(heading, Padding(facts, (0, 0, 0, 2)))


def _style(group: Group) -> str:
    return "green" if group.is_quantized else "yellow"


def _reasoned(what: str, node: str, reason: str, width: int) -> RenderableType:
    heading = Text.assemble((what, "bold"), "  ", shorten(node, width - len(what) - 2))
    return entry(heading, shorten_quoted(reason, width // 2))
