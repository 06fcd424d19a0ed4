"""Shapes behind operators that move elements, or make tensors of a computed size.

One function per operator, as in `layers` and `indexing`, whose tables are part
of this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dims import Shape, Size, quotient
from fusewright.graph.facts import Facts, product
from fusewright.graph.symbolic.indexing import INDEXING
from fusewright.graph.symbolic.layers import (
    LAYERS,
    ShapeFunction,
    broadcast,
    unified,
)
from fusewright.graph.walk import input_at


def shapes_of(node: gs.Node, facts: Facts) -> Sequence[Shape | None]:
    """Shapes of the node's first outputs; None where the rank is unknown."""
    if node.op == "Split":
        return _split(node, facts)
    function = SHAPES.get(node.op)
    if function is None:
        return ()
    # The second output, where it has the shape of the first: TopK's and MaxPool's indices.
    twice = node.op in ("Dropout", "MaxPool", "TopK") and len(node.outputs) > 1
    return [function(node, facts)] * (2 if twice else 1)


def _shape(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    if x is None:
        return (None,)
    return (len(x[slice(node.attrs.get("start"), node.attrs.get("end"))]),)


def _scalar(node: gs.Node, facts: Facts) -> Shape:
    return ()


def _target(node: gs.Node, facts: Facts, index: int = 1) -> Shape | None:
    """The shape that an input holds."""
    sizes = facts.sizes_at(node, index)
    return None if sizes is None else tuple(sizes)


def _reshape(node: gs.Node, facts: Facts) -> Shape | None:
    x, target = facts.shape_at(node, 0), _target(node, facts)
    if target is None:
        return None
    copies = [] if facts.attr(node, "allowzero") else [i for i, d in enumerate(target) if d == 0]
    # What is copied from its own position is on both sides: it may be unknown.
    found = [(x[i] if x is not None and i < len(x) else None) if i in copies else d
             for i, d in enumerate(target)]  # fmt: skip
    open_axes = [i for i, d in enumerate(found) if i not in copies and (d is None or d == -1)]
    if len(open_axes) == 1:
        rest = [d for i, d in enumerate(found) if i not in copies and i != open_axes[0]]
        given = None if x is None else product([d for i, d in enumerate(x) if i not in copies])
        count = product(rest)
        found[open_axes[0]] = None if given is None or count is None else quotient(given, count)
    return tuple(None if i in open_axes and d == -1 else d for i, d in enumerate(found))


def _flatten(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    if x is None:
        return None
    axis = int(facts.attr(node, "axis"))
    axis += len(x) if axis < 0 else 0
    return product(x[:axis]), product(x[axis:])


def _transpose(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    if x is None:
        return None
    return tuple(x[i] for i in node.attrs.get("perm") or reversed(range(len(x))))


def _squeeze(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    axes = None if x is None else facts.axes(node, len(x))
    if x is None or axes is None:
        return None
    if not axes:
        if not all(isinstance(dim, int) for dim in x):
            return None
        axes = [i for i, dim in enumerate(x) if dim == 1]
    return tuple(dim for i, dim in enumerate(x) if i not in axes)


def _unsqueeze(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    given = node.attrs.get("axes") or facts.ints_at(node, 1)
    if x is None or given is None:
        return None
    rank, old = len(x) + len(given), iter(x)
    axes = [int(axis) % rank for axis in given]
    return tuple(1 if i in axes else next(old) for i in range(rank))


def _expand(node: gs.Node, facts: Facts) -> Shape | None:
    return broadcast(facts.shape_at(node, 0), _target(node, facts))


def _tile(node: gs.Node, facts: Facts) -> Shape | None:
    x, repeats = facts.shape_at(node, 0), _target(node, facts)
    if x is None or repeats is None:
        return None
    return tuple(product(pair) for pair in zip(x, repeats, strict=True))


def _concat(node: gs.Node, facts: Facts) -> Shape | None:
    given = [facts.shape(tensor) for tensor in node.inputs]
    shapes = [shape for shape in given if shape is not None]
    if len(shapes) < len(given):
        return None
    axis = int(node.attrs["axis"]) % len(shapes[0])
    columns = list(zip(*shapes, strict=True))
    return tuple(_sum(dims) if i == axis else unified(dims) for i, dims in enumerate(columns))


def _sum(dims: Sequence[Size | None]) -> Size | None:
    known = [dim for dim in dims if dim is not None]
    return sum(known, start=0) if len(known) == len(dims) else None


def _split(node: gs.Node, facts: Facts) -> list[Shape | None]:
    x, count = facts.shape_at(node, 0), len(node.outputs)
    if x is None:
        return [None] * count
    axis = int(facts.attr(node, "axis")) % len(x)
    parts: Sequence[Size | None] | None = node.attrs.get("split")
    if parts is None and input_at(node, 1) is not None:
        parts = facts.sizes_at(node, 1)
    elif parts is None:
        parts = _equal_parts(x[axis], int(node.attrs.get("num_outputs", count)))
    parts = [None] * count if parts is None else parts
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


def _equal_parts(size: Size | None, count: int) -> list[Size | None]:
    whole = None if size is None else quotient(size, count)
    if whole is not None or not isinstance(size, int):
        return [whole] * count
    part = -(-size // count)
    return [*[part] * (count - 1), size - part * (count - 1)]


def _pad(node: gs.Node, facts: Facts) -> Shape | None:
    x, pads = facts.shape_at(node, 0), facts.sizes_at(node, 1)
    if x is None or pads is None:
        return None if x is None else tuple(None for _ in x)
    axes = list(range(len(x))) if input_at(node, 3) is None else facts.ints_at(node, 3)
    if axes is None:
        return tuple(None for _ in x)
    found = list(x)
    for i, axis in enumerate(axes):
        found[axis] = _sum([x[axis], pads[i], pads[i + len(axes)]])
    return tuple(found)


def _resize(node: gs.Node, facts: Facts) -> Shape | None:
    x = facts.shape_at(node, 0)
    stretches = node.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    if x is None or not stretches:
        return None
    axes = [int(axis) % len(x) for axis in node.attrs.get("axes") or range(len(x))]
    found = list(x)
    if input_at(node, 3) is not None:
        sizes = facts.sizes_at(node, 3) or [None] * len(axes)
        for axis, size in zip(axes, sizes, strict=True):
            found[axis] = size
        return tuple(found)
    scales = facts.value_at(node, 2)
    for i, axis in enumerate(axes):
        found[axis] = None if scales is None else _scaled(x[axis], scales.reshape(-1)[i])
    return tuple(found)


def _scaled(size: Size | None, scale: object) -> Size | None:
    """⌊size·scale⌋, as it comes out in either precision."""
    if size is None or not isinstance(scale, np.floating):
        return None
    if scale == np.floor(scale):
        return size * int(scale)
    if not isinstance(size, int):
        return None
    exact, rounded = int(np.floor(size * float(scale))), int(np.floor(np.float32(size) * scale))
    return exact if exact == rounded else None


def _blocks(node: gs.Node, facts: Facts) -> Shape | None:
    """DepthToSpace and SpaceToDepth."""
    x, side = facts.shape_at(node, 0), int(node.attrs["blocksize"])
    if x is None or len(x) != 4:
        return None
    n, c, h, w = x
    if node.op == "DepthToSpace":
        channels = None if c is None else quotient(c, side * side)
        return n, channels, product([h, side]), product([w, side])
    low, wide = (None if size is None else quotient(size, side) for size in (h, w))
    return n, product([c, side * side]), low, wide


SHAPES: Mapping[str, ShapeFunction] = {
    **LAYERS,
    **INDEXING,
    "Concat": _concat,
    "ConstantOfShape": lambda node, facts: _target(node, facts, 0),
    "DepthToSpace": _blocks,
    "Expand": _expand,
    "Flatten": _flatten,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": _scalar,
    "SpaceToDepth": _blocks,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
