"""An operand on its way to where MatMul wants its axes: layout nodes, or a changed constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import is_constant, values
from fusewright.normalize.rule import Edit
from fusewright.normalize.shapes import Size


@dataclass
class Operand:
    """A tensor whose axes are moved; each move is a node, or is done at once to a stored one.

    Attributes:
        edit: the model.
        tensor: as it is after the moves so far.
        name: what nodes and constants are named after.
        nodes: the moves.
    """

    edit: Edit
    tensor: gs.Tensor
    name: str
    nodes: list[gs.Node] = field(default_factory=list)

    @property
    def shape(self) -> list[Size] | None:
        """Sizes, as far as they are known."""
        return None if self.tensor.shape is None else list(self.tensor.shape)

    def apply(
        self, op: str, others: Sequence[gs.Tensor], shape: Sequence[Size] | None, **attrs: object
    ) -> None:
        """Adds a node that reads the tensor and `others`."""
        node = self.edit.node(op, [self.tensor, *others], f"{self.name}_{op}", attrs)
        result = node.outputs[0]
        result.dtype, result.shape = self.tensor.dtype, None if shape is None else list(shape)
        self.nodes.append(node)
        self.tensor = result

    def transpose(self, perm: Sequence[int]) -> None:
        """Brings the axes into another order."""
        if list(perm) == list(range(len(perm))):
            return
        if is_constant(self.tensor):
            self._store(values(self.tensor).transpose(perm))
        else:
            shape = self.shape and [self.shape[i] for i in perm]
            self.apply("Transpose", [], shape, perm=list(perm))

    def reshape(self, sizes: Sequence[int], shape: Sequence[Size] | None = None) -> None:
        """Reshapes, 0 keeping the size of the input's axis; `shape` is what comes out."""
        if is_constant(self.tensor):
            array = values(self.tensor)
            self._store(
                array.reshape([array.shape[i] if n == 0 else n for i, n in enumerate(sizes)])
            )
        else:
            self.apply("Reshape", [self.integers(sizes)], shape)

    def merge_last(self, count: int) -> None:
        """Makes one axis of the last `count`, of a tensor whose shape is known to have them."""
        if count == 1 or self.shape is None:
            return
        kept, merged = self.shape[:-count], self.shape[-count:]
        known = [n for n in merged if isinstance(n, int)]
        size = prod(known) if len(known) == count else None
        self.reshape([*[0] * len(kept), size or -1], [*kept, size])

    def unsqueeze(self, axes: Sequence[int]) -> None:
        """Adds axes of size one, at these positions of the result, ascending."""
        if not axes:
            return
        if is_constant(self.tensor):
            self._store(np.expand_dims(values(self.tensor), tuple(axes)))
            return
        shape = self.shape
        if shape is not None:
            for axis in axes:
                shape.insert(axis, 1)
        self.apply("Unsqueeze", [self.integers(axes)], shape)

    def squeeze(self, axes: Sequence[int]) -> None:
        """Drops axes of size one."""
        if axes:
            shape = self.shape and [n for i, n in enumerate(self.shape) if i not in axes]
            self.apply("Squeeze", [self.integers(axes)], shape)

    def integers(self, numbers: Sequence[int]) -> gs.Constant:
        """A stored list of axes or sizes."""
        return self.edit.constant(f"{self.name}_sizes", np.array(numbers, np.int64))

    def _store(self, array: np.ndarray) -> None:
        self.tensor = self.edit.constant(self.name, array)


def matmul(a: Operand, b: Operand, name: str) -> Operand:
    """The product, as an operand that has the nodes of both."""
    node = a.edit.node("MatMul", [a.tensor, b.tensor], name)
    result = node.outputs[0]
    result.dtype, result.shape = a.tensor.dtype, _product_shape(a.shape, b.shape)
    return Operand(a.edit, result, name, [*a.nodes, *b.nodes, node])


def _product_shape(a: list[Size] | None, b: list[Size] | None) -> list[Size] | None:
    if a is None or b is None or len(b) < 2:
        return None
    if len(a) == 1:
        return [*b[:-2], b[-1]]
    rank = max(len(a), len(b))
    ones: list[Size] = [1] * rank
    left, right = (ones[len(s) :] + s[:-2] for s in (a, b))
    lead = [y if x == 1 else x for x, y in zip(left, right, strict=True)]
    return [*lead, a[-2], b[-1]]
