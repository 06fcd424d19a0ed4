"""What can be said of two shapes of which some sizes are not known."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fusewright.graph.walk import rank_of


def same_shape(a: gs.Tensor, b: gs.Tensor) -> bool:
    """Whether two tensors of equally many elements are known to have the same shape.

    Where all sizes but one are equal, that one is too.
    """
    if rank_of(a) is None or rank_of(a) != rank_of(b):
        return False
    differing = [(x, y) for x, y in zip(a.shape, b.shape, strict=True) if x != y or x is None]
    if len(differing) > 1:
        return False
    return not any(isinstance(x, int) and isinstance(y, int) for x, y in differing)


def same_size(a: int | str | None, b: int | str | None) -> bool:
    """Whether two sizes are known to be equal, as numbers or as symbols."""
    return a is not None and a == b


def known_sizes(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """The shape where every size is known."""
    shape = tensor.shape
    whole = shape is not None and all(isinstance(size, int) for size in shape)
    return tuple(shape) if whole else None
