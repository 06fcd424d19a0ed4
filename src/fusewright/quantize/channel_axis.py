"""Where the channels of a tensor are behind an op that moves its elements, or sums them by channel.

An axis counts from the end: 1 is the last one. Many exporters leave leading dimensions unknown, the
trailing ones seldom. Every op here commutes with a positive factor per channel; that is what a
smoothed tensor needs of everything between its producer and the layers that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import attribute, input_at, is_constant, rank_of, scalar, values

# What reads a tensor's shape only.
SHAPE_READERS = frozenset({"Shape", "Size"})

_CUT = "does not keep the channels whole"


def behind(node: gs.Node, axis: int, channels: int, opset: int) -> int | str:
    """The channel axis of a node's outputs, or the reason why there is none.

    Args:
        node: reads the tensor as its first input (Concat: as any).
        axis: of the channels in that tensor, from the end.
        channels: how many there are, at least two.
        opset: the model's.
    """
    rule = _RULES.get(node.op) if node.domain is None else None
    if rule is None:
        return "is no op that only moves elements"
    return rule(node, axis, channels, opset)


def moves(node: gs.Node) -> bool:
    """Whether the node may stand between a producer and the layers that read it."""
    return node.domain is None and node.op in _RULES


def _same(node: gs.Node, axis: int, channels: int, opset: int) -> int | str:
    return axis


def _transpose(node: gs.Node, axis: int, channels: int, opset: int) -> int | str:
    order = attribute(node, "perm", opset)
    if order is None:
        rank = rank_of(node.inputs[0])
        return _unknown(node) if rank is None else rank + 1 - axis
    rank = len(order)
    return rank - list(order).index(rank - axis)


def _reshape(node: gs.Node, axis: int, channels: int, opset: int) -> int | str:
    """Any op that keeps the order in memory: the stride of the channels tells their new axis."""
    stride = _size(_dims(node.inputs[0])[-axis + 1 :]) if axis > 1 else 1
    if stride is None:
        return _unknown(node)
    passed = 1
    for place, size in enumerate(reversed(_dims(node.outputs[0]) or _target(node)), 1):
        if not isinstance(size, int) or size < 1:
            return _unknown(node)
        if passed == stride and size == channels:
            return place
        passed *= size
        if passed > stride:
            return _CUT
    return _unknown(node)


def _target(node: gs.Node) -> list[int | None]:
    """The stored shape of a Reshape; None where it is inferred or copied."""
    tensor = input_at(node, 1)
    if node.op != "Reshape" or tensor is None or not is_constant(tensor):
        return []
    return [int(d) if d > 0 else None for d in values(tensor).reshape(-1)]


def _dims(tensor: gs.Tensor) -> list[object]:
    return list(tensor.shape or ())


def _size(dims: Iterable[object]) -> int | None:
    total = 1
    for size in dims:
        if not isinstance(size, int) or size < 1:
            return None
        total *= size
    return total


def _slice(node: gs.Node, axis: int, channels: int, opset: int) -> int | str:
    given = [input_at(node, i) for i in (1, 3)]
    starts, axes = given
    if starts is None or any(t is not None and not is_constant(t) for t in given):
        return _unknown(node)
    touched = range(len(values(starts))) if axes is None else values(axes).reshape(-1)
    return _untouched(node, axis, touched)


def _split(node: gs.Node, axis: int, channels: int, opset: int) -> int | str:
    return _untouched(node, axis, (attribute(node, "axis", opset),))


def _concat(node: gs.Node, axis: int, channels: int, opset: int) -> int | str:
    return _untouched(node, axis, (attribute(node, "axis", opset),))


def _gather(node: gs.Node, axis: int, channels: int, opset: int) -> int | str:
    along = (attribute(node, "axis", opset),)
    found = _untouched(node, axis, along)
    if isinstance(found, str):
        return found
    indices, place = rank_of(node.inputs[1]), _from_end(node, along)[0]
    if indices is None or place is None:
        return _unknown(node)
    return axis + indices - 1 if place < axis else axis


def _pad(node: gs.Node, axis: int, channels: int, opset: int) -> int | str:
    """Zeros stay what they are when they are scaled; edge, reflect and wrap repeat values."""
    fill, pads = input_at(node, 2), input_at(node, 1)
    if pads is None or not is_constant(pads) or input_at(node, 3) is not None:
        return _unknown(node)
    constant = attribute(node, "mode", opset) == "constant"
    if constant and fill is not None and scalar(fill) != 0:
        return "pads with another value than 0"
    amounts = values(pads).reshape(2, -1)
    return _CUT if np.any(amounts[:, -axis]) else axis


def _mean(node: gs.Node, axis: int, channels: int, opset: int) -> int | str:
    along = attribute(node, "axes", opset)
    if along is None:
        stored = input_at(node, 1)
        if stored is None or not is_constant(stored):
            return _unknown(node)
        along = values(stored).reshape(-1)
    found = _untouched(node, axis, along)
    if isinstance(found, str) or attribute(node, "keepdims", opset):
        return found
    return axis - sum(place is not None and place < axis for place in _from_end(node, along))


def _over_space(node: gs.Node, axis: int, channels: int, opset: int) -> int | str:
    rank = rank_of(node.inputs[0])
    if rank is None:
        return _unknown(node)
    return axis if rank - axis == 1 else _CUT


def _from_end(node: gs.Node, axes: Iterable[int]) -> list[int | None]:
    """Axes as counted here; None where the rank decides and is not known."""
    rank = rank_of(node.inputs[0])
    known = (int(a) if rank is None or a < 0 else int(a) - rank for a in axes)
    return [-a if a < 0 else None for a in known]


def _untouched(node: gs.Node, axis: int, axes: Iterable[int]) -> int | str:
    places = _from_end(node, axes)
    if axis in places:
        return _CUT
    return _unknown(node) if None in places else axis


def _unknown(node: gs.Node) -> str:
    return "has shapes or axes that are not known"


_RULES: dict[str, Callable[[gs.Node, int, int, int], int | str]] = {
    "Concat": _concat,
    "Expand": _same,
    "Flatten": _reshape,
    "Gather": _gather,
    "GlobalAveragePool": _over_space,
    "Identity": _same,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
