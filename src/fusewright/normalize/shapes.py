"""What can be said of two shapes of which some sizes are not known."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fusewright.graph.walk import input_at, is_constant, producer, values
from fusewright.match.pattern import Pattern, op

Size = int | str | None
_KEEPING_SHAPE = frozenset(
    {
        "Gelu",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "Relu",
        "Softmax",
    }
)


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


def shape_op(x: Pattern, name: str | None = None) -> Pattern:
    """The whole shape of `x`; from opset 15 on Shape may give a part."""
    whole = {"start": lambda start: not start, "end": lambda end: end is None}
    return op("Shape", x, name=name, **whole)


def _is_whole(node: gs.Node) -> bool:
    return node.op == "Shape" and not node.attrs.get("start") and node.attrs.get("end") is None


def _origin(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor whose shape this one has by definition, however little is known of it."""
    while True:
        node = producer(tensor)
        if node is None:
            return tensor
        target = producer(node.inputs[1]) if node.op == "Reshape" else None
        if target is not None and _is_whole(target):
            tensor = target.inputs[0]
        elif node.op in _KEEPING_SHAPE:
            tensor = node.inputs[0]
        else:
            return tensor


def same_shape(a: gs.Tensor, b: gs.Tensor) -> bool:
    """Whether two tensors of equally many elements are known to have the same shape.

    Where all sizes but one are equal, that one is too.
    """
    if _origin(a) is _origin(b):
        return True
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
