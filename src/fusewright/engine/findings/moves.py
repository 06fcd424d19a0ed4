"""Kernels that only move data or change its type or layout."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fusewright.engine.findings.view import View
from fusewright.engine.outline import LAYOUT
from fusewright.engine.report import Finding

# 8.6 to 10: `Reformatting CopyNode for Input Tensor 0 to …`, `…_clone_0 copy`, type Reformat.
_REFORMAT = re.compile(r"Reformat|Reformatting CopyNode| copy$|Shuffle", re.IGNORECASE)


def move_findings(view: View) -> Iterator[Finding]:
    """One finding per reformat, copy, and layout op that no neighbour took in."""
    for index, row in enumerate(view.rows):
        if row.operation is not None or view.is_pair_alone(index) or view.is_epilogue(index):
            continue
        ops = {view.op(name) for name in view.own_nodes(index)}
        made_up = row.inferred or not view.own_nodes(index)
        if made_up or _REFORMAT.search(f"{row.kernel.type} {row.kernel.name}"):
            yield view.finding(_cause(view, index), (index,), row.nodes[:1], _change(view, index))
        elif ops and ops <= LAYOUT:
            detail = ", ".join(sorted(ops))
            yield view.finding("moved-by-node", (index,), view.own_nodes(index), detail)


def _cause(view: View, index: int) -> str:
    kernel = view.rows[index].kernel
    if {t.dtype for t in kernel.inputs} != {t.dtype for t in kernel.outputs}:
        return "type-change"
    first = next(view.kernels_before(index), None) is None
    last = next(view.kernels_after(index), None) is None
    return "layout-at-border" if first or last else "layout-change"


def _change(view: View, index: int) -> str:
    kernel = view.rows[index].kernel
    if not kernel.inputs or not kernel.outputs:
        return ""
    came, went = kernel.inputs[0].dtype, kernel.outputs[0].dtype
    return came if came == went else f"{came} to {went}"
