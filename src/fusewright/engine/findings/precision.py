"""Convs and GEMMs that the file quantizes and the engine computes in float, and why."""

from __future__ import annotations

from collections.abc import Iterator

from fusewright.engine.findings.attention import attention_nodes
from fusewright.engine.findings.view import QUANTIZED, View
from fusewright.engine.outline import DEQUANTIZE, Outline, OutlineNode
from fusewright.engine.report import Finding
from fusewright.target.table import CONVOLUTION

_CONVS = frozenset({"Conv", "ConvTranspose"})
# Written by Q/DQ form alone: int4 weights meet a float activation on purpose.
_WEIGHT_ONLY_FORMATS = frozenset({"Int4", "FP4"})


def precision_findings(view: View) -> Iterator[Finding]:
    """One finding per heavy node with quantized operands whose kernel reads float."""
    if view.outline is None or not view.rows:
        return
    products = attention_nodes(view.outline)
    for name in view.outline.heavy():
        node = view.outline.nodes[name]
        if name not in products:
            yield from _missed(view, view.outline, node)


def _missed(view: View, outline: Outline, node: OutlineNode) -> Iterator[Finding]:
    activation, weight = outline.planned(node)
    if weight is None or (activation is None and weight in _WEIGHT_ONLY_FORMATS):
        return
    home = view.home(node.name)
    kernels = (home,) if home is not None else tuple(view.owners.get(node.name, ())[-1:])
    reached = view.rows[home].dtype if home is not None else None
    if reached is not None and set(reached.split("*")) <= QUANTIZED:
        return
    cause = "weight-only" if activation is None else _cause(outline, node, reached)
    wanted = f"{activation or weight} in the file"
    yield view.finding(cause, kernels, (node.name,), f"{wanted}, {reached or 'inside a kernel'}")


def _cause(outline: Outline, node: OutlineNode, reached: str | None) -> str:
    if reached is None:
        return "generated"
    if node.op in _CONVS and _is_narrow(outline, node):
        return "grouped-conv"
    before = outline.before(node)
    direct = not before or before[0].op in DEQUANTIZE
    return "missed" if direct else "dequantized-before"


def _is_narrow(outline: Outline, node: OutlineNode) -> bool:
    """Whether it is grouped, with channels per group that no quantized kernel takes."""
    groups = node.attributes.get("group", 1)
    if groups == 1:
        return False
    source = outline.before(node)[1]
    while source.reads and source.reads[0] not in outline.stored:
        source = outline.before(source)[0]
    shape = outline.stored.get(source.reads[0], ())
    multiple = CONVOLUTION["int8"].group_multiple or 1
    return len(shape) > 1 and bool(shape[1] % multiple or (shape[0] // groups) % multiple)
