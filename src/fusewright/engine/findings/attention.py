"""Attention that is not one fused kernel, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fusewright.engine.findings.view import FLOATS, View
from fusewright.engine.operations import ATTENTION as FUSED
from fusewright.engine.outline import LAYOUT, QDQ, Outline, OutlineNode
from fusewright.engine.report import Finding
from fusewright.target.table import ATTENTION

_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})
# What may stand between the first product and Softmax, and between Softmax and the second.
_SCORES = frozenset({"Add", "Mul", "Div", "Sub", "Where"}) | LAYOUT | QDQ | {"Cast"}
_SEEN_THROUGH = LAYOUT | QDQ | {"Cast", "Dropout"}
_LIMITS = {"Int8": "int8", "UInt8": "int8", "FP8": "fp8", "Half": "fp16", "BFloat16": "fp16"}


@dataclass(frozen=True)
class Core:
    """softmax(q·kᵀ)·v: its two products and the Softmax between."""

    first: OutlineNode
    softmax: OutlineNode
    second: OutlineNode
    between: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Its three nodes."""
        return self.first.name, self.softmax.name, self.second.name


def attention_findings(view: View) -> Iterator[Finding]:
    """One finding per attention that no fused kernel computes."""
    if view.outline is None or not view.rows:
        return
    for core in cores(view.outline):
        kernels = [i for name in core.names for i in view.owners.get(name, ())]
        if any(view.rows[i].operation == FUSED for i in kernels) or not kernels:
            continue
        cause, detail = _cause(view, view.outline, core)
        yield view.finding(cause, sorted(set(kernels)), core.names, detail)


def attention_nodes(outline: Outline) -> frozenset[str]:
    """Names of the products inside attention."""
    return frozenset(n for core in cores(outline) for n in (core.first.name, core.second.name))


def cores(outline: Outline) -> Iterator[Core]:
    """Every attention of a model, from its Softmax outwards."""
    for node in outline.nodes.values():
        if node.op != "Softmax":
            continue
        first, between = _upwards(outline, node)
        second = _downwards(outline, node)
        if first is not None and second is not None:
            yield Core(first, node, second, between)


def _upwards(outline: Outline, softmax: OutlineNode) -> tuple[OutlineNode | None, tuple[str, ...]]:
    level, seen = list(outline.before(softmax)), list[str]()
    while level:
        node = level.pop(0)
        if node.op in _PRODUCTS and not any(outline.is_stored(t) for t in node.reads[:2]):
            return node, tuple(seen)
        if node.op in _PRODUCTS or len(seen) > 20:
            continue
        seen.append(node.op)
        level += outline.before(node)
    return None, ()


def _downwards(outline: Outline, softmax: OutlineNode) -> OutlineNode | None:
    level = list(outline.after(softmax))
    while level:
        node = level.pop(0)
        if node.op in _PRODUCTS:
            return node
        if node.op in _SEEN_THROUGH:
            level += outline.after(node)
    return None


def _cause(view: View, outline: Outline, core: Core) -> tuple[str, str]:
    size, tokens = _sizes(view, core)
    seen = f"head size {size}, {tokens} tokens" if size else ""
    behind = [*outline.planned(core.first), *outline.planned(core.second)]
    planned = {kind for kind in behind if kind is not None}
    if not planned:
        return _float_cause(view, core, size, seen)
    if len(planned) > 1 or behind[0] is None or behind[1] is None or behind[3] is None:
        scaled = any(_hidden_pair(outline, t) for t in core.first.reads[:2])
        return ("attention-scale" if scaled else "attention-mixed"), seen
    if behind[2] is None:
        return "attention-softmax", seen
    limits = ATTENTION[_LIMITS.get(planned.pop(), "int8")]
    if size and not limits.takes(size):
        return "attention-head-size", seen
    if tokens and limits.sequence is not None and tokens > limits.sequence:
        return "attention-sequence", seen
    if limits.output_pair and not _is_quantized_after(outline, core.second):
        return "attention-output", seen
    return ("attention-unknown" if set(core.between) <= _SCORES else "attention-mask"), seen


def _float_cause(view: View, core: Core, size: int, seen: str) -> tuple[str, str]:
    types = {
        tensor.dtype
        for name in (core.first.name, core.second.name)
        for index in view.owners.get(name, ())
        for tensor in view.rows[index].kernel.inputs
    }
    if "Float" in types & FLOATS:
        return "attention-float", seen
    if size and not ATTENTION["fp16"].takes(size):
        return "attention-head-size", seen
    return ("attention-unknown" if set(core.between) <= _SCORES else "attention-mask"), seen


def _hidden_pair(outline: Outline, tensor: str) -> bool:
    """Whether a pair is behind the op that writes `tensor`, and not directly behind the product."""
    node = outline.behind(tensor)
    if node is None or node.op in QDQ or node.op in _PRODUCTS:
        return False
    return any(outline.quantized_as(read) for read in node.reads)


def _is_quantized_after(outline: Outline, node: OutlineNode) -> bool:
    level = list(outline.after(node))
    while level:
        after = level.pop()
        if after.op == "QuantizeLinear":
            return True
        if after.op in LAYOUT:
            level += outline.after(after)
    return False


def _sizes(view: View, core: Core) -> tuple[int, int]:
    """Head size and the longer sequence, off the shapes of the products' kernels; 0 if unknown."""
    home = view.home(core.first.name)
    kernel = None if home is None else view.rows[home].kernel
    if kernel is None or len(kernel.inputs) < 2 or not kernel.outputs:
        return 0, 0
    first, scores = kernel.inputs[0].shape, kernel.outputs[0].shape
    if len(first) < 2 or len(scores) < 2:
        return 0, 0
    return first[-1], max(scores[-2:])
