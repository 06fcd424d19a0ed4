"""How much larger a tensor gets where positions do: what depends on them is not what was measured.

A sample of 6 tokens shows positions up to 5; the angle of position 4000 is another number. Whole
numbers that are fed, or counted off an open dimension, are the origin. What is made of them grows
with them, up to a function with bounds, a norm or a lookup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from fusewright.graph.dims import resolve
from fusewright.graph.families import BOUNDED, CONTRACTIONS, LAYOUT, PLACES, POINTWISE, REDUCTIONS
from fusewright.graph.walk import input_at, is_constant, peek, scalar, toposort
from fusewright.precision.flow import Flow, largest

# An image may be whole numbers, but not of these.
_COUNTING = frozenset(
    {TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64}
)
_FOLLOWING = (POINTWISE | LAYOUT | REDUCTIONS | CONTRACTIONS | {"CumSum", "Range"}) - BOUNDED
# Dividing by what grows makes smaller.
_PLACES = {**PLACES, "Div": (1,)}
_PICKING = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})
# 0 and 1 are flags: a mask, or which of two a token is.
_FLAGS = 1.0


class Growth:
    """By which factor tensors may exceed what was measured of them; infinite where none is known.

    Args:
        flow: with the ranges.
        sizes: the declared maximum of symbolic dimensions.
    """

    def __init__(self, flow: Flow, sizes: Mapping[str, int]) -> None:
        """Walks from the inputs to the outputs."""
        self._flow, self._sizes = flow, sizes
        self._counts: dict[int, float] = {}  # the largest of whole numbers that are not measured
        self._factors: dict[int, float] = {}
        for tensor in flow.graph.inputs:
            if flow.types.of(tensor) in _COUNTING:
                self._counts[id(tensor)] = np.inf
        for node in toposort(flow.graph.nodes):
            self._visit(node)

    def of(self, tensor: gs.Tensor) -> float:
        """The factor, 1 where the tensor is what the samples show."""
        return self._factors.get(id(tensor), 1.0)

    def size(self, tensor: gs.Tensor) -> float | None:
        """The largest magnitude it may have; None where it was not measured."""
        peak, factor = self._flow.peak(tensor), self.of(tensor)
        if peak is None or not np.isfinite(peak):
            return None
        return np.inf if not np.isfinite(factor) else peak * factor

    def _visit(self, node: gs.Node) -> None:
        count, factor = self._count(node), 1.0
        if node.op in _FOLLOWING:
            places = _PLACES.get(node.op, ())
            data = [t for i, t in enumerate(node.inputs) if i not in places]
            factor = max(map(self.of, data), default=1.0)
        if _has_limit(node):
            factor = 1.0
        for tensor in node.outputs:
            mine = max(factor, self._picked(node, tensor))
            if self._flow.types.is_float(tensor):
                self._factors[id(tensor)] = max(mine, self._counted(tensor, count))
            elif count is not None:
                self._counts[id(tensor)] = count

    def _counted(self, tensor: gs.Tensor, count: float | None) -> float:
        """The factor of a float tensor that holds whole numbers up to `count`."""
        peak = self._flow.peak(tensor)
        if count is None or (peak is not None and peak <= _FLAGS and count == np.inf):
            return 1.0
        return max(1.0, count / max(peak or 0.0, _FLAGS))

    def _picked(self, node: gs.Node, tensor: gs.Tensor) -> float:
        """The factor of a part of a stored table, of which other data picks another part."""
        if node.op not in _PICKING or not is_constant(node.inputs[0]):
            return 1.0
        if all(is_constant(t) for t in node.inputs) or not self._flow.types.is_float(tensor):
            return 1.0
        peak = self._flow.peak(tensor)
        return max(1.0, largest(peek(node.inputs[0])) / peak) if peak else 1.0

    def _count(self, node: gs.Node) -> float | None:
        """The largest whole number of what the node makes of whole numbers; None of other data."""
        if node.op in ("Shape", "Size"):
            return self._dimensions(node)
        if node.op == "Range":
            return self._counted_off(node)
        places = _PLACES.get(node.op, ())
        data = [t for i, t in enumerate(node.inputs) if i not in places]
        known = [self._counts[id(t)] for t in data if id(t) in self._counts]
        if not known or node.op not in _FOLLOWING or any(map(self._flow.types.is_float, data)):
            return None
        constants = [largest(peek(t)) for t in data if is_constant(t)]
        if node.op in ("Add", "Sub"):
            return sum(known) + sum(constants)
        if node.op in LAYOUT or node.op in ("Cast", "Abs", "Neg", "Max", "Min", "Where"):
            return max(known)
        if node.op == "Div":
            return known[0]
        factor = max([1.0, *constants])
        return max(known) * factor if node.op == "Mul" and len(known) == 1 else np.inf

    def _dimensions(self, node: gs.Node) -> float | None:
        shape = node.inputs[0].shape
        if shape is None:
            return np.inf
        if all(isinstance(d, int) for d in shape):
            return None
        sizes = resolve(shape, self._sizes)
        known = [float(d) for d in sizes if d is not None]
        if len(known) < len(sizes):
            return np.inf
        return math.prod(known) if node.op == "Size" else max(known)

    def _counted_off(self, node: gs.Node) -> float | None:
        if all(is_constant(t) for t in node.inputs):
            return None
        start, delta = scalar(node.inputs[0]), scalar(node.inputs[2])
        (steps,) = resolve(node.outputs[0].shape or (None,), self._sizes)
        if start is None or delta is None or steps is None:
            limit = self._counts.get(id(node.inputs[1]))
            return np.inf if limit is None else limit
        return max(abs(start), abs(start + (steps - 1) * delta))


def _has_limit(node: gs.Node) -> bool:
    """Whether a stored number ends its result from above."""
    slots = {"Clip": (2,), "Min": (0, 1), "Mod": (1,)}.get(node.op, ())
    bounds = [input_at(node, i) for i in slots]
    return any(bound is not None and is_constant(bound) for bound in bounds)
