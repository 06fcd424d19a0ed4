"""The scale and the bias of a normalization: of which shape they must be, and where they stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import is_constant, rank_of, values
from fusewright.match.matcher import Match
from fusewright.normalize.rule import Edit

Shape = tuple[int, ...]


def normalized_shape(x: gs.Tensor, count: int) -> Shape | None:
    """Sizes of the last `count` axes, where they are known."""
    rank = rank_of(x)
    sizes = tuple(x.shape[-count:]) if rank is not None and rank >= count else ()
    return sizes if sizes and all(isinstance(size, int) for size in sizes) else None


def parameter(
    tensor: gs.Tensor, x: gs.Tensor, count: int, shape: Shape | None
) -> np.ndarray | None:
    """A stored scale or bias as an array over the normalized axes.

    Args:
        tensor: with one element, or of any rank with leading ones.
        x: what is normalized.
        count: number of normalized axes.
        shape: their sizes; where they are not known, those of `tensor` are taken.

    Returns:
        An array of `shape`, or None where the tensor is something else.
    """
    array, rank = values(tensor), rank_of(x)
    if array.dtype.kind != "f" or array.ndim > (count if rank is None else max(rank, count)):
        return None
    lead = max(array.ndim - count, 0)
    own: Shape = array.shape[lead:]
    if any(size != 1 for size in array.shape[:lead]):
        return None
    if shape is None:
        return array.reshape(own) if len(own) == count and 1 not in own else None
    fits = all(a in (1, b) for a, b in zip(own[::-1], shape[::-1], strict=False))
    return np.broadcast_to(array.reshape(own), shape) if fits else None


def behind(
    match: Match, op: str, over: tuple[int, Shape | None], edit: Edit
) -> tuple[Match, np.ndarray] | None:
    """A Mul by γ, or an Add of β, that alone reads what a normalization of the last axes writes.

    Args:
        match: the normalization of `x`.
        op: `Mul` or `Add`.
        over: number of normalized axes, and their sizes where they are known.
        edit: the model.

    Returns:
        The match with that node as its root, and the parameter; None where there is none.
    """
    x = match.tensors["x"]
    return behind_by(match, op, lambda tensor: parameter(tensor, x, *over), edit)


def behind_by(
    match: Match, op: str, read: Callable[[gs.Tensor], np.ndarray | None], edit: Edit
) -> tuple[Match, np.ndarray] | None:
    """The same, where `read` says what a stored tensor is as a parameter, or that it is none."""
    output = match.output
    is_output = any(t is output for t in edit.model.graph.outputs)
    if is_output or len(output.outputs) != 1 or output.outputs[0].op != op:
        return None
    node = output.outputs[0]
    stored = [t for t in node.inputs if is_constant(t)]
    if node.domain or len(stored) != 1 or len(node.inputs) != 2:
        return None
    array = read(stored[0])
    return None if array is None else (replace(match, root=node, nodes=(node, *match.nodes)), array)
