"""Q/DQ nodes that became kernels of their own, and why."""

from __future__ import annotations

from collections.abc import Iterator

from fusewright.engine.findings.attention import attention_findings
from fusewright.engine.findings.view import FLOATS, QUANTIZED, View
from fusewright.engine.operations import CONV, GEMM
from fusewright.engine.outline import DYNAMIC_QUANTIZE, QDQ, OutlineNode
from fusewright.engine.report import Finding

# They compute in float, so a pair behind them is a requantization.
NOT_COMMUTING = frozenset(
    {"AveragePool", "GlobalAveragePool", "ReduceMean", "Resize", "Upsample", "LpPool"}
    | {"GridSample", "InstanceNormalization"}
)


def qdq_findings(view: View) -> Iterator[Finding]:
    """One finding per kernel that does nothing but quantize or dequantize."""
    told = {i for finding in attention_findings(view) for i in finding.kernels}
    for index in range(len(view.rows)):
        if view.is_pair_alone(index):
            names = view.own_nodes(index)
            cause, detail = _cause(view, index, names)
            yield view.finding(cause, (index,), names, detail)
        elif _is_split_epilogue(view, index) and index not in told:
            yield view.finding("split-epilogue", (index,), view.rows[index].kernel.nodes[:1])


def _is_split_epilogue(view: View, index: int) -> bool:
    """Whether it requantizes what a quantized conv or GEMM wrote in float."""
    row = view.rows[index]
    if row.operation is not None or not any(t.dtype in QUANTIZED for t in row.kernel.outputs):
        return False
    return any(
        view.rows[i].dtype in QUANTIZED
        and view.rows[i].operation in (CONV, GEMM)
        and all(t.dtype in FLOATS for t in view.rows[i].kernel.outputs)
        for i in view.kernels_before(index)
    )


def _cause(view: View, index: int, names: tuple[str, ...]) -> tuple[str, str]:
    row = view.rows[index]
    nodes = [node for node in map(view.node, names) if node is not None]
    pairs = [node for node in nodes if node.op in QDQ]
    if _finds_scales(view, index, pairs):
        return "block-scales", ""
    if not row.kernel.inputs or (pairs and all(_is_weight(view, node) for node in pairs)):
        return "weight-dequantized", ""
    ops = {view.op(name) for name in names}
    if {"Concat", "QuantizeLinear", "DequantizeLinear"} <= ops:
        return "concat-scales", ""
    if any(t.dtype in QUANTIZED for t in row.kernel.outputs):
        return _quantizes(view, index, pairs)
    return _dequantizes(view, index, pairs)


def _finds_scales(view: View, index: int, pairs: list[OutlineNode]) -> bool:
    """Whether it quantizes in blocks, or brings their scales to where the GEMM reads them."""
    if view.outline is None or not any(
        t.dtype in QUANTIZED for t in view.rows[index].kernel.outputs
    ):
        return False
    before = [other for node in pairs for other in view.outline.before(node)]
    return any(node.op in DYNAMIC_QUANTIZE for node in (*pairs, *before))


def _is_weight(view: View, node: OutlineNode) -> bool:
    return view.outline is not None and view.outline.is_stored(node.reads[0])


def _quantizes(view: View, index: int, pairs: list[OutlineNode]) -> tuple[str, str]:
    outline = view.outline
    first = next((node for node in pairs if node.op == "QuantizeLinear"), None)
    other = "split-epilogue" if _is_split_epilogue(view, index) else "alone"
    if outline is None or first is None:
        at_border = next(view.kernels_before(index), None) is None
        return ("quantizes-input" if at_border else other), ""
    source = outline.behind(first.reads[0])
    if source is None:
        return "quantizes-input", f"input {first.reads[0]}"
    if source.op in NOT_COMMUTING:
        return "does-not-commute", f"behind {source.op}"
    others = [node for node in outline.after(source) if node.op != "QuantizeLinear"]
    if others and first.reads[0] in source.writes:
        return "shared-in-float", f"also read by {others[0].op} {others[0].name.split(' | ')[-1]}"
    return other, f"behind {source.op}"


def _dequantizes(view: View, index: int, pairs: list[OutlineNode]) -> tuple[str, str]:
    outline = view.outline
    last = next((node for node in reversed(pairs) if node.op == "DequantizeLinear"), None)
    if outline is None or last is None:
        at_border = next(view.kernels_after(index), None) is None
        return ("dequantizes-output" if at_border else "float-reader"), ""
    if set(last.writes) & outline.outputs:
        return "dequantizes-output", f"output {last.writes[0]}"
    readers = outline.after(last)
    return "float-reader", f"read by {readers[0].op}" if readers else ""
