"""Where float32 ends: the cut through the graph that needs the fewest Casts.

Some nodes must be float32, heavy ones must be half, and pointwise, layout and Q/DQ nodes between
them may be either. A Cast serves all readers of its tensor. That is a minimum cut, found by
augmenting paths; what may be either ends half unless float32 spares a Cast.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence, Set

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import is_constant
from fusewright.precision.flow import Flow
from fusewright.precision.ops import FLEXIBLE, is_light

# A Cast is worth this many float32 nodes that could be half.
CAST, NODE = 4, 1
_HALF, _FLOAT = 0, 1
_NO_LIMIT = 1 << 40
_LARGE = 4096


def float_nodes(
    flow: Flow,
    forced: Mapping[str, str],
    io_half: bool,
    regions: Sequence[Sequence[gs.Node]] = (),
) -> Set[str]:
    """Names of the nodes to keep float32, `forced` and those that spare Casts.

    Args:
        io_half: the model's inputs and outputs become half too.
        regions: nodes that lie on one side together; all of one are forced, or none.
    """
    network = _Network()
    place = _places(flow, forced, network)
    for region in regions:
        _unite(region, place, network)
    for tensor in flow.computed():
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is None:
            source = _HALF if io_half else _FLOAT
        else:
            index = next(i for i, t in enumerate(maker.outputs) if t is tensor)
            source = place[id(maker)] if index in flow.slots(maker).outputs else _FLOAT
        readers = _readers(flow, tensor, place, io_half)
        _add_tensor(network, source, readers)
    side = network.float_side()
    return {
        node.name
        for node in flow.graph.nodes
        if flow.slots(node).follows and place[id(node)] in side
    }


def _places(flow: Flow, forced: Mapping[str, str], network: _Network) -> dict[int, int]:
    """The vertex of each node."""
    place: dict[int, int] = {}
    for node in flow.graph.nodes:
        if node.name in forced or not flow.slots(node).follows:
            place[id(node)] = _FLOAT
        elif not is_light(node):
            place[id(node)] = _HALF
        else:
            place[id(node)] = network.vertex()
            network.edge(_HALF, place[id(node)], _cost(node))
    return place


def _unite(region: Sequence[gs.Node], place: dict[int, int], network: _Network) -> None:
    """Gives the nodes of a region one vertex: that of the first which may not be either."""
    fixed = [place[id(node)] for node in region if place[id(node)] in (_HALF, _FLOAT)]
    shared = fixed[0] if fixed else network.vertex()
    for node in region:
        place[id(node)] = shared
    if not fixed:
        network.edge(_HALF, shared, sum(map(_cost, region)))


def _cost(node: gs.Node) -> int:
    """What it costs to keep a light node float32."""
    if node.op in FLEXIBLE:
        return 0
    stored = [t for t in node.inputs if is_constant(t)]
    # An embedding would be stored in twice the size to spare the Cast of what is picked from it.
    large = any(math.prod(t.shape) > _LARGE and t.dtype == np.float32 for t in stored)
    return 2 * CAST if large else NODE


def _readers(flow: Flow, tensor: gs.Tensor, place: Mapping[int, int], io_half: bool) -> set[int]:
    found: set[int] = set()
    for node, i in flow.readers(tensor):
        slots = flow.slots(node)
        if i in slots.inputs:
            found.add(place[id(node)])
        elif i in slots.rigid_inputs:
            found.add(_FLOAT)
    if any(t is tensor for t in flow.graph.outputs):
        found.add(_HALF if io_half else _FLOAT)
    if flow.is_captured(tensor):
        found.add(_FLOAT)
    return found


def _add_tensor(network: _Network, source: int, readers: set[int]) -> None:
    """Cost of one Cast if any reader is on the other side than the writer, in either direction."""
    readers = readers - {source}
    if not readers:
        return
    if source != _FLOAT:  # written half, read float32
        below = network.vertex()
        network.edge(source, below, CAST)
        for reader in readers - {_HALF}:
            network.edge(below, reader, _NO_LIMIT)
    if source != _HALF:  # written float32, read half
        above = network.vertex()
        network.edge(above, source, CAST)
        for reader in readers - {_FLOAT}:
            network.edge(reader, above, _NO_LIMIT)


class _Network:
    """A flow network from vertex 0 (half) to vertex 1 (float32)."""

    def __init__(self) -> None:
        self._room: list[dict[int, int]] = [{}, {}]

    def vertex(self) -> int:
        """A new vertex."""
        self._room.append({})
        return len(self._room) - 1

    def edge(self, start: int, end: int, capacity: int) -> None:
        """Adds capacity from `start` to `end`."""
        if start != end:
            self._room[start][end] = self._room[start].get(end, 0) + capacity
            self._room[end].setdefault(start, 0)

    def float_side(self) -> set[int]:
        """The smallest set of vertices on float32's side of a minimum cut."""
        while (path := self._path()) is not None:
            amount = min(self._room[a][b] for a, b in path)
            for a, b in path:
                self._room[a][b] -= amount
                self._room[b][a] += amount
        return self._reaching_float()

    def _path(self) -> list[tuple[int, int]] | None:
        # From the far end: there is little float32, and much half to get lost in.
        behind: dict[int, int] = {_FLOAT: _FLOAT}
        waiting = deque([_FLOAT])
        while waiting and _HALF not in behind:
            here = waiting.popleft()
            for there in self._room[here]:
                if there not in behind and self._room[there][here] > 0:
                    behind[there] = here
                    waiting.append(there)
        if _HALF not in behind:
            return None
        path, here = [], _HALF
        while here != _FLOAT:
            path.append((here, behind[here]))
            here = behind[here]
        return path

    def _reaching_float(self) -> set[int]:
        found, waiting = {_FLOAT}, [_FLOAT]
        while waiting:
            here = waiting.pop()
            for there in self._room[here]:
                if there not in found and self._room[there][here] > 0:
                    found.add(there)
                    waiting.append(there)
        return found
