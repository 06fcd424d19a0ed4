"""What one walk over a graph knows: the shape of each tensor, and the values of small ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from fusewright.graph.dims import Dim, Shape, Size
from fusewright.graph.symbols import Symbols
from fusewright.graph.walk import attribute, input_at, is_constant, peek

# Larger tensors are data, not shapes.
MOST_VALUES = 64
Values: TypeAlias = npt.NDArray[Any]
"""Elements of a tensor as objects: int, bool, NumPy float, `Dim`, or None where unknown."""


@dataclass
class Facts:
    """Shapes and values by the tensors' `id`; what is not in there is unknown.

    Attributes:
        symbols: the dimensions of the model's inputs.
        opset: of the standard operators.
    """

    symbols: Symbols
    opset: int
    shapes: dict[int, Shape | None] = field(default_factory=dict)
    values: dict[int, Values | None] = field(default_factory=dict)

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """The tensor's shape: what the walk found, else what is annotated; None: no rank."""
        key = id(tensor)
        if key not in self.shapes:
            self.shapes[key] = self.annotated(tensor)
        return self.shapes[key]

    def annotated(self, tensor: gs.Tensor) -> Shape | None:
        """The shape that the tensor carries: numbers and known symbols, None for the rest."""
        if tensor.shape is None:
            return None
        return tuple(d if type(d) is int else self.symbols.read(d) for d in tensor.shape)

    def value(self, tensor: gs.Tensor) -> Values | None:
        """The tensor's elements where it is small and at least its shape is known."""
        key = id(tensor)
        if key not in self.values and is_constant(tensor):
            self.values[key] = _stored(tensor)
        return self.values.get(key)

    def shape_at(self, node: gs.Node, index: int) -> Shape | None:
        """Shape of input `index`; None where it is omitted too."""
        tensor = input_at(node, index)
        return None if tensor is None else self.shape(tensor)

    def value_at(self, node: gs.Node, index: int) -> Values | None:
        """Elements of input `index`; None where it is omitted too."""
        tensor = input_at(node, index)
        return None if tensor is None else self.value(tensor)

    def sizes_at(self, node: gs.Node, index: int) -> list[Size | None] | None:
        """Elements of an integer input, flat; None where not even their number is known."""
        value = self.value_at(node, index)
        if value is not None:
            return [v if isinstance(v, (int, Dim)) else None for v in value.reshape(-1)]
        shape = self.shape_at(node, index)
        count = shape[0] if shape is not None and len(shape) == 1 else None
        return [None] * count if isinstance(count, int) else None

    def ints_at(self, node: gs.Node, index: int) -> list[int] | None:
        """Elements of an integer input, flat, where all are known numbers."""
        sizes = self.sizes_at(node, index)
        if sizes is None:
            return None
        known = [size for size in sizes if isinstance(size, int)]
        return known if len(known) == len(sizes) else None

    def attr(self, node: gs.Node, name: str) -> Any:
        """An attribute's value, or its default in the schema, or None."""
        return attribute(node, name, self.opset)

    def axes(self, node: gs.Node, rank: int) -> list[int] | None:
        """The axes of an operator that takes them as attribute or second input, non-negative.

        None where they are computed; an empty list where there are none given.
        """
        axes = node.attrs.get("axes")
        if axes is None and input_at(node, 1) is not None:
            axes = self.ints_at(node, 1)
            if axes is None:
                return None
        return [int(axis) % rank for axis in axes or ()] if rank else []


def product(dims: Sequence[Size | None]) -> Size | None:
    """The number of elements; None where a dimension is unknown, unless another is 0."""
    if any(type(dim) is int and dim == 0 for dim in dims):
        return 0
    known = [dim for dim in dims if dim is not None]
    return math.prod(known) if len(known) == len(dims) else None


def kind_of(tensor: gs.Tensor) -> str:
    """NumPy's letter for the kind of elements; empty where it has none (bfloat16), or unknown."""
    # graphsurgeon keeps onnx's number of a type that NumPy lacks.
    return "" if tensor.dtype is None or type(tensor.dtype) is int else np.dtype(tensor.dtype).kind


def _stored(tensor: gs.Constant) -> Values | None:
    small = math.prod(tensor.shape) <= MOST_VALUES and kind_of(tensor) in ("i", "u", "b", "f")
    return as_values(peek(tensor)) if small else None


def as_values(array: np.ndarray) -> Values:
    """A known array as elements; floats keep their type."""
    values: Values = np.empty(array.shape, object)
    flat = array.reshape(-1)
    values.reshape(-1)[:] = list(flat) if array.dtype.kind == "f" else flat.tolist()
    return values
