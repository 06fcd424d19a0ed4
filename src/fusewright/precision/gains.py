"""How much of an error in an operator's input is seen in its result, and which elements matter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fusewright.graph.families import CONTRACTIONS, LAYOUT, POINTWISE, REDUCTIONS
from fusewright.graph.products import longest_vector
from fusewright.graph.walk import attribute, axes_of, input_at, is_constant, peek
from fusewright.precision.flow import Flow
from fusewright.precision.growth import Growth
from fusewright.target.table import SELDOM_PAYS_BELOW

# Largest slope, and where |x · slope| is largest: beyond it rounding x shows less.
_BOUNDED = {
    "Atan": (1.0, 0.5), "Erf": (1.13, 0.43), "HardSigmoid": (0.2, 2.5), "Sigmoid": (0.25, 0.9),
    "Softsign": (1.0, 0.25), "Tanh": (1.0, 0.45),
}  # fmt: skip
_KEEPING = frozenset(
    {
        "Abs", "Cast", "Ceil", "Clip", "Floor", "Identity", "LeakyRelu", "Max", "MaxPool", "Min",
        "Neg", "PRelu", "ReduceMax", "ReduceMin", "Relu", "Round", "Where",
    }
)  # fmt: skip
# They ask for themselves (`sensitive`), and have bounds.
_ASKING = frozenset({"Cos", "Sin", "Tan"})
_SUMS = frozenset({"Add", "Sub", "Sum", "Mean"})
# Layout and selection: the inputs that hold elements.
_DATA = {
    "Clip": (0,), "Compress": (0,), "Expand": (0,), "Gather": (0,), "GatherElements": (0,),
    "GatherND": (0,), "Mod": (0,), "Pad": (0, 2), "PRelu": (0,), "Pow": (0,), "Resize": (0,),
    "ScatterElements": (0, 2), "ScatterND": (0, 2), "Where": (1, 2),
}  # fmt: skip
_ALL = frozenset({"Concat", "Max", "Min", "Mean", "Sum"})
_SMOOTH = frozenset({"AveragePool", "Mod", "ReduceMean", "Resize"})


@dataclass(frozen=True)
class Gain:
    """What an operator does to the error of one input.

    Attributes:
        slot: of the input.
        factor: the result is off by this many times the input's error.
        size: the largest magnitude of the elements that matter; None where it is the tensor's own.
        bounded: the result has bounds: where the input itself may be rounded, so may what it is
            made of.
    """

    slot: int
    factor: float
    size: float | None = None
    bounded: bool = False


def gains(flow: Flow, growth: Growth, node: gs.Node, size: float) -> Iterator[Gain]:
    """The float inputs that a node's result is made of; none of a node that ends the way back.

    A norm, a Softmax or a recurrent network is such an end: its result is as wrong as half makes
    any, and what lies in front of it would not mend that.

    Args:
        size: the largest magnitude that matters in the result.
    """
    for gain in _gains(flow, growth, node, size):
        if flow.types.is_float(node.inputs[gain.slot]):
            yield gain


def is_heavy(flow: Flow, node: gs.Node) -> bool:
    """Whether float32 costs time there: a contraction of few elements is no more than a product."""
    if node.op in CONTRACTIONS:
        count = contracted(node)
        return count is None or count >= SELDOM_PAYS_BELOW
    return node.op not in POINTWISE | LAYOUT | REDUCTIONS


def _gains(flow: Flow, growth: Growth, node: gs.Node, size: float) -> Iterator[Gain]:
    if node.op in _SUMS:
        yield from _of_sum(growth, node, size)
    elif node.op == "Mul":
        for slot in (0, 1):
            yield Gain(slot, _known(growth.size(node.inputs[1 - slot])))
    elif node.op == "Div":
        least = flow.smallest(node.inputs[1])
        yield Gain(0, 1 / least if least else math.inf)
        yield Gain(1, size / least if least else math.inf)
    elif node.op in _BOUNDED:
        slope, most = _BOUNDED[node.op]
        yield Gain(0, slope, most, bounded=True)
    elif node.op in CONTRACTIONS:
        yield from _of_contraction(flow, growth, node)
    elif node.op in ("ReduceSum", "CumSum"):
        yield Gain(0, _added_up(flow, node))
    else:
        yield from _of_elements(growth, node, size)


def _of_elements(growth: Growth, node: gs.Node, size: float) -> Iterator[Gain]:
    if node.op in _KEEPING or node.op in LAYOUT:
        yield from (Gain(slot, 1.0, size) for slot in _data(node))
    elif node.op in _SMOOTH:
        yield Gain(0, 1.0)
    elif node.op in POINTWISE - _ASKING:
        whole = _known(growth.size(node.inputs[0]))
        yield Gain(0, size / whole if whole else math.inf)


def _data(node: gs.Node) -> tuple[int, ...]:
    slots = tuple(range(len(node.inputs))) if node.op in _ALL else _DATA.get(node.op, (0,))
    return tuple(slot for slot in slots if input_at(node, slot) is not None)


def _of_sum(growth: Growth, node: gs.Node, size: float) -> Iterator[Gain]:
    """Where the result is at most `size`, an operand is at most that and what is added to it."""
    sizes = [_known(growth.size(tensor)) for tensor in node.inputs]
    for slot, own in enumerate(sizes):
        others = sum(sizes) - own if math.isfinite(sum(sizes)) else math.inf
        yield Gain(slot, 1.0, min(own, size + others))


def _of_contraction(flow: Flow, growth: Growth, node: gs.Node) -> Iterator[Gain]:
    """By the root of the squares: what is rounded is not all rounded to one side."""
    count = contracted(node) or 1
    scale = float(attribute(node, "alpha", flow.opset) or 1.0) if node.op == "Gemm" else 1.0
    for slot in (0, 1):
        other = node.inputs[1 - slot]
        factor = _known(growth.size(other)) * count**0.5
        if is_constant(other) and node.op != "Einsum":
            factor = longest_vector(node, 1 - slot, flow.opset)
        if not is_constant(node.inputs[slot]):
            yield Gain(slot, factor * abs(scale))
    if input_at(node, 2) is not None and node.op != "Einsum":
        yield Gain(2, 1.0)


def contracted(node: gs.Node) -> int | None:
    """How many products make one element of a contraction; None where that is open."""
    shapes = [t.shape for t in node.inputs[:2]]
    if len(shapes) < 2 or None in shapes or not all(shapes):
        return None
    first, second = shapes
    if node.op == "Einsum":
        return _summed_up(str(node.attrs["equation"]), shapes)
    if node.op in ("Conv", "ConvTranspose"):
        skipped = 0 if node.op == "Conv" else 1
        sizes = [d for i, d in enumerate(second) if i != skipped]
        return math.prod(sizes) if all(isinstance(d, int) for d in sizes) else None
    turned = [bool(node.attrs.get(name)) and node.op == "Gemm" for name in ("transA", "transB")]
    found = (first[-2 if turned[0] else -1], second[-1 if turned[1] or len(second) == 1 else -2])
    return next((d for d in found if isinstance(d, int)), None)


def _summed_up(equation: str, shapes: list[list[int | str]]) -> int | None:
    terms, _, result = equation.replace(" ", "").partition("->")
    count = 1
    for letter in {*terms} - {*result, ",", "."}:
        sizes = [
            shape[term.index(letter) - len(term)]
            for term, shape in zip(terms.split(","), shapes, strict=False)
            if letter in term
        ]
        size = next((d for d in sizes if isinstance(d, int)), None)
        if size is None:
            return None
        count *= size
    return count


def _added_up(flow: Flow, node: gs.Node) -> float:
    """CumSum adds one rounding after the other to one side, where what it adds is constant."""
    shape = node.inputs[0].shape
    if shape is None:
        return math.inf
    if node.op == "CumSum":
        axis = input_at(node, 1)
        sizes = [shape[int(peek(axis).reshape(-1)[0])]] if axis and is_constant(axis) else shape
    else:
        axes = axes_of(node, flow.opset, len(shape))
        sizes = [shape[a] for a in axes or range(len(shape))]
    if not all(isinstance(d, int) for d in sizes):
        return math.inf
    count = float(math.prod(sizes))
    return count if node.op == "CumSum" else math.sqrt(count)


def _known(size: float | None) -> float:
    """The size of a tensor that was not measured cannot say anything: as if it were 1."""
    return 1.0 if size is None else size
