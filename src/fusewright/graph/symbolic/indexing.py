"""Shapes behind operators that pick elements by index, and of ranges: Slice, Gather, TopK.

One function per operator, as in `layers`.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from fusewright.graph.dims import Dim, Shape, Size, at_least, smaller
from fusewright.graph.facts import Facts
from fusewright.graph.symbolic.layers import ShapeFunction
from fusewright.graph.walk import input_at

# Exporters write the largest integer, or nearly, for "to the end".
_TO_THE_END = 1 << 31


def _slice(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    starts, ends = facts.sizes_at(node, 1), facts.sizes_at(node, 2)
    if x is None:
        return None
    unknown = tuple(None for _ in x)
    if starts is None or ends is None:
        return unknown
    axes = list(range(len(starts))) if input_at(node, 3) is None else facts.ints_at(node, 3)
    steps = [1] * len(starts) if input_at(node, 4) is None else facts.sizes_at(node, 4)
    if axes is None or steps is None:
        return unknown
    found = list(x)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        found[axis] = _sliced(x[axis], start, end, step)
    return tuple(found)


def _sliced(
    size: Size | None, start: Size | None, end: Size | None, step: Size | None
) -> Size | None:
    """How many elements `[start:end:step]` of `size` has."""
    if size is None or start is None or end is None or not isinstance(step, int) or not step:
        return None
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(size)))
    if step == -1 and start == -1 and isinstance(end, int) and end < -_TO_THE_END:
        return size
    if step != 1:
        return None
    if start == 0 and isinstance(size, int) and isinstance(end, Dim) and _is_positive(end):
        return smaller(size, end)
    first, last = _position(start, size), _position(end, size)
    if first is None or last is None:
        return None
    if _is_positive(last - first):
        return last - first
    return 0 if _is_positive(first - last) else None


def _position(index: Size, size: Size) -> Size | None:
    """An index made non-negative and cut to the size, where it is certain what that gives."""
    if isinstance(index, int) and index >= _TO_THE_END:
        return size
    if isinstance(index, int) and index < 0:
        index = size + index
        return index if _is_positive(index) else None
    return index if _is_positive(index) and _is_positive(size - index) else None


def _is_positive(size: Size) -> bool:
    lower = at_least(size)
    return lower is not None and lower >= 0


def _gather(node: gs.Node, facts: Facts) -> Shape | None:
    x, indices = facts.shape_at(node, 0), facts.shape_at(node, 1)
    if x is None or indices is None:
        return None
    axis = int(facts.attr(node, "axis")) % len(x)
    return (*x[:axis], *indices, *x[axis + 1 :])


def _gather_elements(node: gs.Node, facts: Facts) -> Shape | None:
    return facts.shape_at(node, 1)


def _gather_nd(node: gs.Node, facts: Facts) -> Shape | None:
    x, indices = facts.shape_at(node, 0), facts.shape_at(node, 1)
    if x is None or not indices or not isinstance(indices[-1], int):
        return None
    return (*indices[:-1], *x[int(facts.attr(node, "batch_dims")) + indices[-1] :])


def _range(node: gs.Node, facts: Facts) -> Shape:
    ends = [facts.value_at(node, i) for i in range(3)]
    start, limit, step = (None if end is None else end.item() for end in ends)
    if start is None or limit is None or step is None or not step:
        return (None,)
    if isinstance(step, int) and step == 1:
        count = limit - start
        return (count,) if _is_positive(count) else (0 if _is_positive(-count) else None,)
    if not all(type(end) is int for end in (start, limit, step)):
        return (None,)
    return (len(range(start, limit, step)),)


def _top_k(node: gs.Node, facts: Facts) -> Shape | None:
    x, k = facts.shape_at(node, 0), facts.sizes_at(node, 1)
    if x is None or k is None:
        return None
    axis = int(facts.attr(node, "axis")) % len(x)
    return (*x[:axis], k[0], *x[axis + 1 :])


def _one_hot(node: gs.Node, facts: Facts) -> Shape | None:
    indices, depth = facts.shape_at(node, 0), facts.sizes_at(node, 1)
    if indices is None or depth is None:
        return None
    axis = int(facts.attr(node, "axis")) % (len(indices) + 1)
    return (*indices[:axis], depth[0], *indices[axis:])


def _non_zero(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    return None if x is None else (len(x), None)


INDEXING: Mapping[str, ShapeFunction] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Range": _range,
    "Slice": _slice,
    "TopK": _top_k,
}
