"""What every rule asks of the graph: types, slots, who reads what, and how large it gets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.layout import moved_inputs
from fusewright.graph.walk import captured, is_constant, peek, producer
from fusewright.precision.kinds import HalfKind
from fusewright.precision.ranges import TensorRanges
from fusewright.precision.types import DEQUANTIZE, QUANTIZE, ElementTypes, Slots, slots_of

Slot = tuple[str, int]
"""A node's name and the position of one of its inputs."""


class Flow:
    """The main graph as the rules see it; it is not changed."""

    def __init__(
        self,
        graph: gs.Graph,
        kind: HalfKind,
        ranges: TensorRanges | None = None,
        frozen: frozenset[str] = frozenset(),
    ) -> None:
        """Reads types and slots; nodes in `frozen` stay float32."""
        self.graph, self.kind, self.opset = graph, kind, int(graph.opset)
        self.ranges = ranges or TensorRanges({}, {}, 0)
        self.types = ElementTypes(graph)
        self._slots: dict[int, Slots] = {}
        for node in graph.nodes:
            slots = slots_of(node, self.types, self.opset, kind)
            self._slots[id(node)] = slots.rigid() if node.name in frozen else slots
        self._outputs = {id(t) for t in graph.outputs}
        self._captured = {id(t) for n in graph.nodes for t in captured(n)}
        self._peaks: dict[int, float | None] = {}

    def slots(self, node: gs.Node) -> Slots:
        """Which of a node's tensors follow it."""
        return self._slots[id(node)]

    def slots_or_none(self, node: gs.Node) -> Slots | None:
        """The same; None of a node that is newer than this view of the graph."""
        return self._slots.get(id(node))

    def leaves(self, tensor: gs.Tensor) -> bool:
        """Whether it is an output of the model, or read inside a subgraph."""
        return id(tensor) in self._outputs or id(tensor) in self._captured

    def is_captured(self, tensor: gs.Tensor) -> bool:
        """Whether it is read inside a subgraph."""
        return id(tensor) in self._captured

    def readers(self, tensor: gs.Tensor) -> Iterator[tuple[gs.Node, int]]:
        """The nodes of the main graph that read it, with the position."""
        seen: set[int] = set()
        for node in tensor.outputs:
            if id(node) in self._slots and id(node) not in seen:
                seen.add(id(node))
                yield from ((node, i) for i, t in enumerate(node.inputs) if t is tensor)

    def computed(self) -> Iterator[gs.Tensor]:
        """The float32 tensors that nodes write, and those that are fed."""
        for tensor in (*self.graph.inputs, *(t for n in self.graph.nodes for t in n.outputs)):
            if self.types.is_float(tensor):
                yield tensor

    def peak(self, tensor: gs.Tensor) -> float | None:
        """Largest finite magnitude of a stored tensor, largest measured one of another.

        Infinite where the tensor was; None where it was not measured.
        """
        key = id(tensor)
        if key not in self._peaks:
            self._peaks[key] = self._peak(tensor)
        return self._peaks[key]

    def is_stored(self, tensor: gs.Tensor) -> bool:
        """Whether its values lie in the file, behind a Q/DQ pair or not: they do not grow."""
        node = producer(tensor)
        codes = node is not None and node.op == DEQUANTIZE and is_constant(node.inputs[0])
        return codes or is_constant(self._source(tensor))

    def smallest(self, tensor: gs.Tensor) -> float | None:
        """Smallest magnitude that is not 0, where it was measured."""
        if is_constant(tensor):
            values = np.abs(peek(tensor))
            return float(values[values > 0].min()) if (values > 0).any() else None
        source = self._source(tensor)
        found = self.ranges.tensors.get(source.name)
        return None if found is None else found.smallest

    def _peak(self, tensor: gs.Tensor) -> float | None:
        if is_constant(tensor):
            return largest(peek(tensor))
        found = self.ranges.tensors.get(tensor.name)
        if found is not None:
            return found.maximum
        source = self._source(tensor)
        if source is not tensor:
            return self.peak(source)
        node = producer(tensor)
        if node is not None and node.op == DEQUANTIZE and is_constant(node.inputs[0]):
            return largest(peek(node.inputs[0]).astype(np.float32)) * largest(peek(node.inputs[1]))
        moved = moved_inputs(node, self.opset) if node is not None else ()
        peaks = [self.peak(t) for t in moved]
        known = [p for p in peaks if p is not None]
        return max(known) if known and len(known) == len(peaks) else None

    def _source(self, tensor: gs.Tensor) -> gs.Tensor:
        """The float tensor behind a Q/DQ pair."""
        node = producer(tensor)
        if node is None or node.op != DEQUANTIZE:
            return tensor
        quantize = producer(node.inputs[0])
        if quantize is None or quantize.op != QUANTIZE:
            return tensor
        source: gs.Tensor = quantize.inputs[0]
        return source


def largest(values: np.ndarray) -> float:
    """Largest finite magnitude; 0 of nothing."""
    if not values.size:
        return 0.0
    top, bottom = float(values.max()), float(values.min())
    if np.isfinite(top) and np.isfinite(bottom):
        return max(abs(top), abs(bottom))
    finite = values[np.isfinite(values)]
    return float(np.abs(finite).max()) if finite.size else 0.0
