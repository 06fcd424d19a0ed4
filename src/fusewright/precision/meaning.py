"""Operators whose result half would spoil although every tensor fits into it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.graph.families import LAYOUT, POINTWISE
from fusewright.graph.walk import attribute, axes_of, input_at, is_constant, peek, producer
from fusewright.precision.errors import magnified
from fusewright.precision.flow import Flow
from fusewright.precision.scales import can_be_coarser, has_reciprocal
from fusewright.precision.types import QUANTIZE

_SUMS = frozenset(
    {
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd",
        "ReduceSum", "ReduceSumSquare",
    }
)  # fmt: skip
_SQUARES = frozenset(
    {"LRN", "LpNormalization", "LpPool", "MeanVarianceNormalization", "ReduceL2", "ReduceSumSquare"}
)
# The rounding of n half sums, were they kept in half, grows with √n: 128 leave 50 dB.
_MOST_SUMMED = 128
# e^x is as wrong, relatively, as x is absolutely: beyond e^1.4, more than one bit of a half.
_LARGEST_EXP = 4.0
_WHOLE = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
)
# What these read as float32 says where, not what.
_PLACES = {"Range": (0, 1, 2), "Resize": (1, 2), "Upsample": (1,), "NonMaxSuppression": (0, 1)}


def spoiled(flow: Flow, margin: float, sizes: Mapping[str, int]) -> dict[str, str]:
    """Names of the nodes that have to stay float32, with the reason.

    Args:
        flow: with the ranges.
        margin: by how much values may exceed those measured.
        sizes: the declared maximum of symbolic dimensions.
    """
    found = magnified(flow, sizes)
    for node in flow.graph.nodes:
        reason = _reason(flow, node, margin)
        if reason is not None and flow.slots(node).follows:
            found.setdefault(node.name, reason)
        for tensor, what in _places(flow, node):
            for behind in _pointwise_behind(tensor):
                if flow.slots(behind).follows:
                    found.setdefault(behind.name, what)
    return found


def _reason(flow: Flow, node: gs.Node, margin: float) -> str | None:
    if node.op in ("CumSum", "CumProd"):
        return "a cumulative sum rounds at every step"
    if node.op == "GridSample":
        return "its grid says where to sample"
    if node.op == QUANTIZE:
        return _too_fine(flow, node)
    if node.op == "Cast":
        return _indexes(flow, node)
    result = flow.peak(node.outputs[0]) if node.outputs else None
    if node.op == "Exp" and result is not None and result > _LARGEST_EXP:
        return f"e^x up to {result:.3g}: rounding x would show"
    if node.op in _SQUARES and _beyond(flow, node, (flow.kind.maximum / margin) ** 0.5):
        return f"its squares exceed {flow.kind.title}"
    if node.op == "ReduceLogSumExp" and _beyond(flow, node, _most_exponent(flow, node, margin)):
        return f"its exponentials exceed {flow.kind.title}"
    if node.op in _SUMS or node.op == "GlobalAveragePool":
        return _sums(flow, node, result, margin)
    return None


def _beyond(flow: Flow, node: gs.Node, limit: float) -> bool:
    peak = flow.peak(node.inputs[0])
    return peak is not None and peak > limit


def _most_exponent(flow: Flow, node: gs.Node, margin: float) -> float:
    """The largest x of which a sum of e^x is a number: nothing is subtracted beforehand."""
    return math.log(flow.kind.maximum / margin / (_summed(node, flow.opset) or 1))


def _too_fine(flow: Flow, node: gs.Node) -> str | None:
    # The engine multiplies by the scale's reciprocal, in the type of the scale.
    if not is_constant(node.inputs[1]):
        return None
    scale, axis = peek(node.inputs[1]), int(attribute(node, "axis", flow.opset))
    if has_reciprocal(scale, flow.kind):
        return None
    weight = node.inputs[0]
    per_channel = is_constant(weight) and scale.ndim == 1
    if per_channel and can_be_coarser(scale, peek(weight), axis, flow.kind):
        return None
    return f"its scale {float(scale.min()):.2g} has no reciprocal in {flow.kind.title}"


def _indexes(flow: Flow, node: gs.Node) -> str | None:
    is_index = int(attribute(node, "to", flow.opset)) in _WHOLE
    return "its whole numbers say where" if is_index else None


def _sums(flow: Flow, node: gs.Node, result: float | None, margin: float) -> str | None:
    count = _summed(node, flow.opset)
    pools = node.op == "GlobalAveragePool"
    if not pools and (count is None or count > _MOST_SUMMED):
        return f"sums up {'a number of' if count is None else count} elements"
    averages = pools or node.op == "ReduceMean"
    total = None if result is None else result * (count or 1 if averages else 1)
    if total is not None and total > flow.kind.maximum / margin:
        return f"its sum of {count} elements reaches {total:.3g}"
    return None


def _summed(node: gs.Node, opset: int) -> int | None:
    """How many elements make one of the result; None where that is not fixed."""
    shape = node.inputs[0].shape
    if shape is None:
        return None
    if node.op == "GlobalAveragePool":
        axes: list[int] | None = list(range(2, len(shape)))
    else:
        axes = axes_of(node, opset, len(shape))
    if axes is None:
        return None
    if not axes and input_at(node, 1) is None and attribute(node, "noop_with_empty_axes", opset):
        return 1
    sizes = [shape[a] for a in axes or range(len(shape))]
    return int(np.prod(sizes)) if all(isinstance(d, int) and d > 0 for d in sizes) else None


def _places(flow: Flow, node: gs.Node) -> Iterator[tuple[gs.Tensor, str]]:
    """The float tensors of a node that say where."""
    slots: tuple[int, ...] = _PLACES.get(node.op, ())
    what = f"{node.op} '{node.name}' reads positions or sizes of it"
    if node.op == "GridSample":
        slots = (1,)
    elif node.op == "Cast" and _indexes(flow, node) is not None:
        slots = (0,)
    for slot in slots:
        tensor = input_at(node, slot)
        if tensor is not None and flow.types.is_float(tensor):
            yield tensor, what


def _pointwise_behind(tensor: gs.Tensor) -> Iterator[gs.Node]:
    """The pointwise and layout nodes that `tensor` comes from, up to anything else."""
    waiting, seen = [tensor], set()
    while waiting:
        node = producer(waiting.pop())
        if node is None or id(node) in seen or node.op not in POINTWISE | LAYOUT:
            continue
        seen.add(id(node))
        yield node
        waiting += list(node.inputs)
