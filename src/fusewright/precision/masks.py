"""Masks: huge stored numbers whose only effect is that Softmax gives 0, or a maximum ignores them.

−1e9, the smallest float32 and −∞ all say "not this one". In half the finite ones would overflow, so
they become −49128, or a part of that where several are added up; −∞ stays. There the numbers of
half lie 32 apart, so that a row that is masked whole still comes out even, as in float32, and
scores down to −16352 fit beside it. −65504 would overflow with the first negative score.

What TensorFlow's exporters pad with in front of a MaxPool is one as well: −∞, −1e9, −3.4e38.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.layout import moved_inputs
from fusewright.graph.walk import is_constant, peek
from fusewright.precision.flow import Flow, Slot
from fusewright.precision.wholes import is_whole

# Through these a mask stays one, at whichever input it enters.
_ADDING = frozenset({"Add", "Sub", "Sum", "Neg", "Concat", "Where", "Max", "Min", "Pad"})
# What takes maxima, and what a number enters unchanged that is none.
_MAXIMA = frozenset({"GlobalMaxPool", "MaxPool", "ReduceMax"})
_FILLING = frozenset({"Concat", "Where", "Pad"})
_SOFTMAX = frozenset({"Softmax"})
_BELOW, _ABOVE = "below", "above"
# Of the largest number: 49128 of 65504.
_ROOM = 0.75


def find_masks(flow: Flow) -> dict[Slot, float]:
    """The reads of stored float32 tensors that are masks, with the magnitude they can have.

    A number beyond those that half can count is taken for one if it reaches nothing but Softmax,
    through sums, selections, layout operators, and products with tensors of whole numbers
    (1 − attention_mask); or, below all of those, nothing but maxima, through selections and layout
    operators.
    """
    added, ignored = _Paths(flow, _SOFTMAX, _ADDING), _Paths(flow, _MAXIMA, _FILLING)
    found = {
        (node.name, i): _ends_behind(flow, node)
        for node in flow.graph.nodes
        for i in flow.slots(node).inputs
        if is_constant(node.inputs[i])
        and (huge := _huge(peek(node.inputs[i]), flow.kind.integers))
        and (added.masks(node, i) or (huge == _BELOW and ignored.masks(node, i)))
    }
    together = Counter(end for reached in found.values() for end in reached)
    return {
        slot: _ROOM * flow.kind.maximum / max(together[end] for end in reached)
        for slot, reached in found.items()
    }


def _ends_behind(flow: Flow, node: gs.Node) -> set[int]:
    """`id` of each Softmax or maximum that a mask which enters `node` reaches."""
    if _ends(node):
        return {id(node)}
    behind = _behind(flow, [node])
    return {id(reader) for t in behind.values() for reader, _ in flow.readers(t) if _ends(reader)}


def _ends(node: gs.Node) -> bool:
    return node.op in _SOFTMAX | _MAXIMA


def masked_tensors(flow: Flow, masks: Iterable[Slot]) -> set[int]:
    """`id` of every tensor between a mask and its Softmax or maximum."""
    nodes = {node.name: node for node in flow.graph.nodes}
    return set(_behind(flow, [nodes[name] for name, _ in masks if name in nodes]))


def _behind(flow: Flow, nodes: Iterable[gs.Node]) -> dict[int, gs.Tensor]:
    found: dict[int, gs.Tensor] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        for tensor in () if _ends(node) else node.outputs:
            if id(tensor) not in found:
                found[id(tensor)] = tensor
                waiting += [reader for reader, _ in flow.readers(tensor)]
    return found


def _huge(values: np.ndarray, limit: float) -> str:
    """On which side some values are beyond the limit; empty where none is."""
    if not values.size or (values.max() <= limit and values.min() >= -limit):
        return ""
    return _BELOW if values.max() <= limit else _ABOVE


class _Paths:
    """Whether all ways from a node lead to certain ends; each node is looked at once."""

    def __init__(self, flow: Flow, ends: frozenset[str], through: frozenset[str]) -> None:
        self._flow, self._at, self._through = flow, ends, through
        self._known: dict[int, bool] = {}

    def masks(self, node: gs.Node, index: int) -> bool:
        """Whether a huge number that enters `node` at `index` is a mask."""
        if node.op in self._at:
            return True
        return self._passes(node, index) and all(map(self._ends, node.outputs))

    def _ends(self, tensor: gs.Tensor) -> bool:
        key = id(tensor)
        if key not in self._known:
            readers = list(self._readers(tensor))
            leaves = self._flow.leaves(tensor) or not readers
            self._known[key] = not leaves and all(self.masks(n, i) for n, i in readers)
        return self._known[key]

    def _readers(self, tensor: gs.Tensor) -> Iterator[tuple[gs.Node, int]]:
        yield from ((n, i) for n, i in self._flow.readers(tensor) if n.op not in ("Shape", "Size"))

    def _passes(self, node: gs.Node, index: int) -> bool:
        if node.op in self._through:
            return True
        if node.op == "Mul" and self._at is _SOFTMAX:
            return is_whole(self._flow, node.inputs[1 - index])
        if is_constant(node.inputs[index]):
            return node.op in ("Expand", "Reshape", "Gather", "Slice", "Tile", "Unsqueeze")
        return any(t is node.inputs[index] for t in moved_inputs(node, self._flow.opset))
