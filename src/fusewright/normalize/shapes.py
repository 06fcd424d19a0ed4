"""What can be said of two shapes of which some sizes are not known."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fusewright.graph.walk import input_at, is_constant, producer, values

Size = int | str | None


def shape_of(tensor: gs.Tensor) -> list[Size] | None:
    """The shape as it was inferred, or as a Reshape to a stored one says it."""
    node = producer(tensor)
    if tensor.shape is not None or node is None or node.op != "Reshape":
        return None if tensor.shape is None else list(tensor.shape)
    target = input_at(node, 1)
    if target is None or not is_constant(target) or node.attrs.get("allowzero"):
        return None
    before = node.inputs[0].shape
    sizes: list[Size] = [int(size) if size > 0 else None for size in values(target)]
    for i, size in enumerate(values(target)):
        if size == 0 and before is not None and i < len(before):
            sizes[i] = before[i]
    return sizes


def same_shape(a: gs.Tensor, b: gs.Tensor) -> bool:
    """Whether two tensors of equally many elements are known to have the same shape.

    Where all sizes but one are equal, that one is too.
    """
    first, second = shape_of(a), shape_of(b)
    if first is None or second is None or len(first) != len(second):
        return False
    differing = [(x, y) for x, y in zip(first, second, strict=True) if x != y or x is None]
    if len(differing) > 1:
        return False
    return not any(isinstance(x, int) and isinstance(y, int) for x, y in differing)


def same_size(a: Size, b: Size) -> bool:
    """Whether two sizes are known to be equal, as numbers or as symbols."""
    return a is not None and a == b


def known_sizes(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """The shape where every size is known."""
    shape = tensor.shape
    whole = shape is not None and all(isinstance(size, int) for size in shape)
    return tuple(shape) if whole else None
