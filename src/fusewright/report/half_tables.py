"""What the closing report says of a half rest: what stays FP32 and why, how it was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.console import RenderableType

from fusewright.plan.plan import Plan
from fusewright.precision import HalfPlan
from fusewright.report.text import counted, entry, section, shorten_quoted, some_of, without_names
from fusewright.target import FORMATS
from fusewright.target.precision import BF16

_SORTS, _NAMES = 4, 2
# A measured number of a reason; not that of a type, such as FP32.
_NUMBER = re.compile(r"(?<![A-Za-z\d.])-?\d[\d.]*(e[+-]?\d+)?")


def half_section(
    half: HalfPlan, overflows: Sequence[str], width: int, verbose: bool = False
) -> list[RenderableType]:
    """How many nodes are half, and those that are not by sort of reason.

    Args:
        half: what became half.
        overflows: tensors that were not finite in half on a sample.
        width: columns there are.
        verbose: every sort, and every stored tensor that got other magnitudes.
    """
    kind = half.kind.upper()
    lines: list[RenderableType] = [f"{counted(len(half.half_nodes), 'node')} in {kind}"]
    for name in overflows:
        lines.append(entry(f"not finite in {kind} on a sample", f"'{name}'"))
    sorts = sorted(_by_sort(half.float_nodes).items(), key=lambda item: -len(item[1]))
    shown = sorts if verbose else sorts[:_SORTS]
    lines += [_kept(sort, half.float_nodes, names, width) for sort, names in shown]
    rest = sum(len(names) for _, names in sorts[len(shown) :])
    if rest:
        lines.append(
            f"kept FP32: {rest} more for {counted(len(sorts) - len(shown), 'reason')} (-v)"
        )
    rewritten = half.rewritten()
    if rewritten:
        line = f"stored numbers brought into {kind}'s range: {len(rewritten)}"
        texts = [f"{place}: {what}" for place, what in rewritten.items()] if verbose else []
        lines.append(entry(line, *texts))
    return section("Precision", *lines)


def measured_on(half: HalfPlan | None, plan: Plan) -> tuple[str, ...]:
    """On what a file was measured that onnxruntime's CPU cannot run as it is, a sentence each."""
    lines = []
    if half is not None:
        why = "computes FP16 partly in FP32"
        if half.kind == BF16:
            why = "has no BF16 convolution or matmul"
        lines.append(
            f"measured on an FP32 twin that rounds to {half.kind.upper()} after each op:"
            f" onnxruntime's CPU {why}"
        )
    decided = {group.decision for group in plan.groups}
    blocks = [form.title for form in FORMATS.values() if form.block and form.name in decided]
    if blocks:
        lines.append(
            f"{' and '.join(blocks)} in FP32 operators that round alike: onnxruntime has none"
        )
    return tuple(lines)


def _by_sort(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Nodes by reason, without the names and numbers in it."""
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        found.setdefault(_NUMBER.sub("…", without_names(why)), []).append(name)
    return found


def _kept(
    sort: str, reasons: Mapping[str, str], names: Sequence[str], width: int
) -> RenderableType:
    exact = {reasons[name] for name in names}
    reason = exact.pop() if len(exact) == 1 else sort
    room = (width - 12) // min(len(names), _NAMES) - 8
    return entry(
        f"kept FP32: {len(names)}",
        shorten_quoted(reason, width // 2),
        some_of(names, _NAMES, room),
    )
