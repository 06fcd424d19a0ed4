"""Values of small tensors, element by element: the arithmetic that exporters do on shapes.

One function per operator takes a node and what is known, and returns the elements of its first
output, or None where not even their arrangement is known.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx.helper
import onnx_graphsurgeon as gs

from fusewright.graph.facts import MOST_VALUES, Facts, Values, as_values, product
from fusewright.graph.symbolic.elements import (
    BINARY,
    UNARY,
    c_remainder,
    cast,
    known,
    maximum,
    minimum,
    where,
)
from fusewright.graph.walk import input_at, is_constant

_Function: TypeAlias = Callable[[gs.Node, Facts], "Values | None"]


def values_of(node: gs.Node, facts: Facts) -> list[Values | None]:
    """The elements of the node's first outputs; None where not even their number is known."""
    if node.op == "Split":
        return _split(node, facts)
    function = VALUES.get(node.op)
    return [] if function is None else [function(node, facts)]


def _split(node: gs.Node, facts: Facts) -> list[Values | None]:
    value = facts.value_at(node, 0)
    lengths = [_numbers(facts.shape(tensor)) for tensor in node.outputs]
    if value is None or value.ndim != 1 or None in lengths:
        return []
    ends = np.cumsum([length[0] for length in lengths if length])
    return [*np.split(value, ends[:-1])]


def _array(value: Any) -> Values:
    """What NumPy makes of an object array: of rank 0 it returns the bare element."""
    if isinstance(value, np.ndarray):
        return value
    bare: Values = np.empty((), object)
    bare[()] = value
    return bare


def _row(values: Sequence[Any]) -> Values:
    row: Values = np.empty(len(values), object)
    row[:] = list(values)
    return row


def _on_elements(function: Callable[..., Any], count: int) -> _Function:
    spread = np.frompyfunc(function, count, 1)

    def apply(node: gs.Node, facts: Facts) -> Values | None:
        if any(facts.value(tensor) is None for tensor in node.inputs if not is_constant(tensor)):
            return None  # before the constants are read: mostly they are weights
        operands = [facts.value_at(node, i) for i in range(count)]
        given = [value for value in operands if value is not None]
        if len(given) < count or len(given) < len(node.inputs):
            return None
        size = math.prod(np.broadcast_shapes(*(value.shape for value in given)))
        return _array(spread(*given)) if size <= MOST_VALUES else None

    return apply


def _over_all(function: Callable[[Any, Any], Any]) -> _Function:
    """Min and Max take any number of operands."""

    def apply(node: gs.Node, facts: Facts) -> Values | None:
        folded = _on_elements(lambda *row: _folded(function, row), len(node.inputs))
        return folded(node, facts)

    return apply


def _folded(function: Callable[[Any, Any], Any], row: Sequence[Any]) -> Any:
    return functools.reduce(known(function), row)


def _reduced(function: Callable[[Any, Any], Any]) -> _Function:
    def apply(node: gs.Node, facts: Facts) -> Values | None:
        value = facts.value_at(node, 0)
        axes = None if value is None else facts.axes(node, value.ndim)
        if value is None or axes is None or not value.size or _has_floats(value):
            return None
        if not axes and facts.attr(node, "noop_with_empty_axes"):
            return value
        over = axes or range(value.ndim)
        rest = [axis for axis in range(value.ndim) if axis not in over]
        kept = [value.shape[axis] for axis in rest]
        rows = np.transpose(value, [*rest, *over]).reshape(math.prod(kept), -1)
        found = _row([_folded(function, row.tolist()) for row in rows])
        if facts.attr(node, "keepdims"):
            kept = [1 if axis in over else size for axis, size in enumerate(value.shape)]
        return found.reshape(kept)

    return apply


def _has_floats(value: Values) -> bool:
    # A sum of floats depends on its order.
    return any(isinstance(element, np.floating) for element in value.flat)


def _modulo(node: gs.Node, facts: Facts) -> Values | None:
    rest = c_remainder if node.attrs.get("fmod") else BINARY["Mod"]
    return _on_elements(rest, 2)(node, facts)


def _cast(node: gs.Node, facts: Facts) -> Values | None:
    value = facts.value_at(node, 0)
    if value is None:
        return None
    to = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))
    return _array(np.frompyfunc(lambda element: cast(element, to), 1, 1)(value))


def _shape(node: gs.Node, facts: Facts) -> Values | None:
    shape = facts.shape_at(node, 0)
    ends = slice(node.attrs.get("start"), node.attrs.get("end"))
    return None if shape is None else _row(shape[ends])


def _size(node: gs.Node, facts: Facts) -> Values | None:
    shape = facts.shape_at(node, 0)
    return None if shape is None else _array(product(shape))


def _gather(node: gs.Node, facts: Facts) -> Values | None:
    value, indices = facts.value_at(node, 0), facts.value_at(node, 1)
    if value is None or indices is None or any(type(i) is not int for i in indices.flat):
        return None
    return _array(np.take(value, indices.astype(np.int64), axis=int(node.attrs.get("axis", 0))))


def _slice(node: gs.Node, facts: Facts) -> Values | None:
    value = facts.value_at(node, 0)
    starts, ends = facts.ints_at(node, 1), facts.ints_at(node, 2)
    if value is None or starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if input_at(node, 3) is None else facts.ints_at(node, 3)
    steps = [1] * len(starts) if input_at(node, 4) is None else facts.ints_at(node, 4)
    if axes is None or steps is None:
        return None
    index = [slice(None)] * value.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return value[tuple(index)]


def _concat(node: gs.Node, facts: Facts) -> Values | None:
    parts = [_part(node, i, facts) for i in range(len(node.inputs))]
    given = [part for part in parts if part is not None]
    if len(given) < len(parts) or sum(part.size for part in given) > MOST_VALUES:
        return None
    return np.concatenate(given, axis=int(node.attrs["axis"]))


def _part(node: gs.Node, index: int, facts: Facts) -> Values | None:
    """An operand of a Concat; an unknown one of known length leaves the others known."""
    value = facts.value_at(node, index)
    if value is not None:
        return value
    sizes = facts.sizes_at(node, index)
    return None if sizes is None else _row(sizes)


def _squeeze(node: gs.Node, facts: Facts) -> Values | None:
    value = facts.value_at(node, 0)
    axes = None if value is None else facts.axes(node, value.ndim)
    if value is None or axes is None:
        return None
    return _array(np.squeeze(value, tuple(axes) if axes else None))


def _rearranged(node: gs.Node, facts: Facts) -> Values | None:
    """Whatever keeps the elements in order; the output's shape was found before."""
    value, shape = facts.value_at(node, 0), _numbers(facts.shape(node.outputs[0]))
    if value is None or shape is None or math.prod(shape) != value.size:
        return None
    return value.reshape(shape)


def _transpose(node: gs.Node, facts: Facts) -> Values | None:
    value = facts.value_at(node, 0)
    return None if value is None else np.transpose(value, node.attrs.get("perm"))


def _expand(node: gs.Node, facts: Facts) -> Values | None:
    value, shape = facts.value_at(node, 0), _numbers(facts.shape(node.outputs[0]))
    return None if value is None or shape is None else np.broadcast_to(value, shape)


def _constant_of_shape(node: gs.Node, facts: Facts) -> Values | None:
    shape, fill = _numbers(facts.shape(node.outputs[0])), node.attrs.get("value")
    if shape is None:
        return None
    array = np.zeros(1, np.float32) if fill is None else fill.values
    return np.broadcast_to(as_values(array.reshape(())), shape)


def _numbers(shape: Sequence[Any] | None) -> tuple[int, ...] | None:
    """A shape of few elements where all of it is known."""
    if shape is None or not all(type(dim) is int for dim in shape):
        return None
    return tuple(shape) if math.prod(shape) <= MOST_VALUES else None


def _range(node: gs.Node, facts: Facts) -> Values | None:
    ends = [facts.value_at(node, i) for i in range(3)]
    numbers = [end.item() for end in ends if end is not None and type(end.item()) is int]
    if len(numbers) < len(ends) or not numbers[-1]:
        return None
    elements = range(*numbers)
    return _row(elements) if len(elements) <= MOST_VALUES else None


def _tile(node: gs.Node, facts: Facts) -> Values | None:
    value, repeats = facts.value_at(node, 0), facts.ints_at(node, 1)
    if value is None or repeats is None or value.size * math.prod(repeats) > MOST_VALUES:
        return None
    return np.tile(value, repeats)


VALUES: Mapping[str, _Function] = {
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _rearranged,
    "Gather": _gather,
    "Identity": _rearranged,
    "Max": _over_all(maximum),
    "Min": _over_all(minimum),
    "Range": _range,
    "ReduceMax": _reduced(maximum),
    "ReduceMin": _reduced(minimum),
    "ReduceProd": _reduced(BINARY["Mul"]),
    "ReduceSum": _reduced(BINARY["Add"]),
    "Reshape": _rearranged,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _rearranged,
    "Where": _on_elements(where, 3),
    **{op: _on_elements(function, 1) for op, function in UNARY.items()},
    **{op: _on_elements(function, 2) for op, function in BINARY.items()},
    "Mod": _modulo,
}
