"""A layout region with a smaller batch, where it carries the batch through.

Along the batch, such a region does the same to every sample, and leaves each in its place: what it
does to two samples says what it does to 64. A tensor is seen as [outer, batch, inner] in row-major
order, and the batch as a factor of one of its axes (PyTorch's attention merges tokens and batch);
operators are followed as long as that is so. Two samples, not one: with one it would not show where
in a result the batch is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs

from fusewright.graph.convert import to_proto
from fusewright.graph.walk import attribute, input_at, values

FEWER = 2
_Shape = Sequence[int]


@dataclass(frozen=True)
class _Place:
    """Where the batch is: the axis, and how many of its factors come before the batch."""

    axis: int
    head: int = 1


def with_fewer(graph: gs.Graph, batch: int) -> bool:
    """Makes a region's graph one of `FEWER` samples, in place; False, and as it was, if it mixes.

    Args:
        graph: layout operators in topological order, of one source of a static shape; what they
            read besides is stored.
        batch: more than `FEWER`.
    """
    (source,) = graph.inputs
    shapes, axis = _shapes(graph), batch_axis(source.shape, batch)
    if axis is None:
        return False
    places = {source.name: _Place(axis)}
    targets: list[tuple[gs.Node, list[int]]] = []
    for node in graph.nodes:
        moved = node.inputs if node.op == "Concat" else node.inputs[:1]
        before = {places[t.name] for t in moved}
        known = all(t.name in shapes for t in (*moved, *node.outputs))
        if len(before) > 1 or not known:
            return False
        into, out = shapes[moved[0].name], shapes[node.outputs[0].name]
        behind = _followed(node, before.pop(), (into, out), batch, int(graph.opset))
        if behind is None:
            return False
        if node.op == "Reshape":
            targets.append((node, _scaled(out, behind.axis, batch)))
        places.update((t.name, behind) for t in node.outputs)
    for i, (node, target) in enumerate(targets):
        node.inputs[1] = gs.Constant(f"fewer{i}", np.array(target, np.int64))
    source.shape = _scaled(source.shape, axis, batch)
    return True


def fewer(shape: _Shape, batch: int) -> tuple[int, ...]:
    """The shape of a source with `FEWER` samples for `batch`."""
    axis = batch_axis(shape, batch)
    return tuple(shape) if axis is None else tuple(_scaled(shape, axis, batch))


def batch_axis(shape: _Shape, batch: int) -> int | None:
    """The first axis, where batches are a factor of it, or else the one that is the batch.

    Never the last one, which is the channels.
    """
    if len(shape) > 1 and shape[0] % batch == 0:
        return 0
    return next((axis for axis, size in enumerate(shape[:-1]) if size == batch), None)


def _scaled(shape: _Shape, axis: int, batch: int) -> list[int]:
    return [size // batch * FEWER if i == axis else size for i, size in enumerate(shape)]


def _shapes(graph: gs.Graph) -> dict[str, list[int]]:
    """The static shapes that follow from the source's; none where some amount does not fit."""
    try:
        proto = onnx.shape_inference.infer_shapes(to_proto(graph), strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return {}
    inferred = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    return {name: shape for name, shape in shapes.items() if all(shape)}


def _followed(
    node: gs.Node, place: _Place, shapes: tuple[_Shape, _Shape], batch: int, opset: int
) -> _Place | None:
    """Where the batch is behind a node; None where the node does more than to move it."""
    (into, out), axis = shapes, place.axis
    if node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return _found(prod(into[:axis]) * place.head, out, batch)
    if node.op == "Transpose":
        order = [int(i) for i in node.attrs.get("perm", range(len(into))[::-1])]
        return replace(place, axis=order.index(axis))
    if axis in _touched(node, len(into), opset):
        return None
    if node.op == "Gather" and int(attribute(node, "axis", opset)) % len(into) < axis:
        return replace(place, axis=axis + values(node.inputs[1]).ndim - 1)
    return place


def _found(outer: int, shape: _Shape, batch: int) -> _Place | None:
    """The axis that the batch is in, with `outer` elements before it in row-major order."""
    for axis, size in enumerate(shape):
        head, rest = divmod(outer, prod(shape[:axis]))
        if not rest and head and size % (head * batch) == 0:
            return _Place(axis, head)
    return None


def _touched(node: gs.Node, rank: int, opset: int) -> Sequence[int]:
    """The axes along which an operator does something; all where it is not known."""
    if node.op == "Identity":
        return ()
    if node.op in ("Concat", "Gather", "Split"):
        return (int(attribute(node, "axis", opset)) % rank,)
    if node.op in ("DepthToSpace", "SpaceToDepth"):
        return range(1, rank)
    amounts = input_at(node, 1)
    if amounts is None:
        return range(rank)
    if node.op == "Slice":
        return _listed(node, 3, len(values(amounts)), rank)
    if node.op == "Pad":
        padded = np.any(values(amounts).reshape(2, -1), axis=0).tolist()
        return [a for a, pads in zip(_listed(node, 3, rank, rank), padded, strict=True) if pads]
    return range(rank)


def _listed(node: gs.Node, index: int, count: int, rank: int) -> list[int]:
    """The axes that an optional input names; without it the first ones."""
    named = input_at(node, index)
    if named is None:
        return list(range(count))
    return [int(axis) % rank for axis in values(named).reshape(-1)]
