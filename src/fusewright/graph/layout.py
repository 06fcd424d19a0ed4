"""Layout: operators that only move elements, regions of them, and where each element goes.

A region is found by walking from a tensor through such operators. What it does is not read off
its operators, of which every exporter has its own choice, but off where it takes the elements of
an index tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.errors import DataError, ModelError
from fusewright.graph.carried import with_fewer
from fusewright.graph.convert import to_proto
from fusewright.graph.session import open_session, run_session
from fusewright.graph.walk import (
    STANDARD_DOMAINS,
    attribute,
    input_at,
    is_constant,
    producer,
    scalar,
    toposort,
    values,
)

# The first input is moved, the others say where to.
_MOVERS = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
# No index tensor is larger, 512 MB in float64.
LARGEST_PROBE = 1 << 26
# They read how large a tensor is, and none of its elements.
SHAPE_ONLY = frozenset({"Shape", "Size"})
_IR = 8


def moved_inputs(node: gs.Node, opset: int) -> tuple[gs.Tensor, ...]:
    """The inputs whose elements a layout operator moves; empty for every other operator.

    A Concat with a stored tensor and a Pad with anything but zeros add values of their own and are
    none; so is a Gather whose indices are computed.
    """
    if node.domain not in STANDARD_DOMAINS:
        return ()
    if node.op == "Concat":
        return () if any(is_constant(t) for t in node.inputs) else tuple(node.inputs)
    if node.op == "Pad":
        return (node.inputs[0],) if _pads_with_zeros(node, opset) else ()
    if node.op == "Gather" and not is_constant(node.inputs[1]):
        return ()
    if node.op not in _MOVERS or is_constant(node.inputs[0]):
        return ()
    return (node.inputs[0],)


def _pads_with_zeros(node: gs.Node, opset: int) -> bool:
    fill = input_at(node, 2)
    return attribute(node, "mode", opset) == "constant" and (fill is None or scalar(fill) == 0)


def data_readers(tensor: gs.Tensor) -> list[gs.Node]:
    """The nodes that read a tensor's elements; not those that ask for its shape."""
    return [node for node in tensor.outputs if node.op not in SHAPE_ONLY]


@dataclass(frozen=True)
class Region:
    """Layout operators between some tensors and what they become.

    Attributes:
        nodes: in topological order.
        sources: the tensors that enter.
        results: the tensors that were asked for, or that leave.
    """

    nodes: tuple[gs.Node, ...]
    sources: tuple[gs.Tensor, ...]
    results: tuple[gs.Tensor, ...]

    def leaks(self, allowed: Iterable[gs.Node], outputs: Iterable[gs.Tensor]) -> gs.Tensor | None:
        """An interior tensor that something else reads, or that is an output of the model.

        Results are not interior. Who asks for its shape alone reads none of its elements.
        """
        inside = {id(n) for n in (*self.nodes, *allowed)}
        fixed = {id(t) for t in outputs}
        results = {id(t) for t in self.results}
        for node in self.nodes:
            for tensor in node.outputs:
                elsewhere = any(id(reader) not in inside for reader in data_readers(tensor))
                if (elsewhere or id(tensor) in fixed) and id(tensor) not in results:
                    return tensor
        return None


def region_behind(
    results: Sequence[gs.Tensor], opset: int, stops: Sequence[gs.Tensor] = ()
) -> Region:
    """Walks back from `results` through layout operators as far as there are any, or to `stops`."""
    stopped = {id(t) for t in stops}
    nodes: dict[int, gs.Node] = {}
    sources: dict[int, gs.Tensor] = {}
    waiting = list(results)
    while waiting:
        tensor = waiting.pop()
        node = producer(tensor)
        moved = () if node is None else moved_inputs(node, opset)
        if not moved or id(tensor) in stopped:
            sources[id(tensor)] = tensor
        elif id(node) not in nodes:
            nodes[id(node)] = node
            waiting.extend(moved)
    return Region(tuple(toposort(nodes.values())), tuple(sources.values()), tuple(results))


def region_ahead(source: gs.Tensor, opset: int) -> Region:
    """Walks forward from `source` through layout operators all of whose inputs come from it."""
    nodes: dict[int, gs.Node] = {}
    inside = {id(source)}
    waiting = [source]
    while waiting:
        for node in waiting.pop().outputs:
            moved = moved_inputs(node, opset)
            if id(node) in nodes or not moved or any(id(t) not in inside for t in moved):
                continue
            nodes[id(node)] = node
            inside.update(id(t) for t in node.outputs)
            waiting.extend(node.outputs)
    made = [t for n in nodes.values() for t in n.outputs]
    leaving = [
        t
        for t in (source, *made)
        if any(id(c) not in nodes for c in data_readers(t)) or not t.outputs
    ]
    return Region(tuple(toposort(nodes.values())), (source,), tuple(leaving))


@dataclass
class Prober:
    """Runs regions on index tensors; regions of equal structure are run once."""

    _done: dict[object, list[np.ndarray] | None] = field(default_factory=dict)
    _carries: dict[object, bool] = field(default_factory=dict)

    def __call__(
        self, region: Region, shape: tuple[int, ...], opset: int, batch: int | None = None
    ) -> list[np.ndarray] | None:
        """Where the elements of a source of this shape go: one array per result of the region.

        Each element of a result is the position of the source's element in row-major order, or -1
        for padding. None where there are several sources, where the region's amounts are computed
        by the model, or where they do not fit the shape. What is probed has at most
        `LARGEST_PROBE` elements: with a `batch` that the region carries, two samples of it.
        """
        if not _is_closed(region):
            return None
        key = (opset, _structure(region), shape, batch)
        if key not in self._done:
            graph = _extract(region, shape, opset)
            self._done[key] = _run(graph) if batch is None or with_fewer(graph, batch) else None
        return self._done[key]

    def carries(self, region: Region, shape: tuple[int, ...], opset: int, batch: int) -> bool:
        """Whether the region does the same to every one of `batch` samples, and mixes none."""
        if not _is_closed(region):
            return False
        key = (opset, _structure(region), shape, batch)
        if key not in self._carries:
            self._carries[key] = with_fewer(_extract(region, shape, opset), batch)
        return self._carries[key]


def _is_closed(region: Region) -> bool:
    """Whether a region has one source, and besides that reads what is stored."""
    if len(region.sources) != 1:
        return False
    inside = {id(t) for n in region.nodes for t in n.outputs}
    inside.add(id(region.sources[0]))
    return all(
        tensor.is_empty() or is_constant(tensor) or id(tensor) in inside
        for node in region.nodes
        for tensor in node.inputs
    )


def _run(graph: gs.Graph) -> list[np.ndarray] | None:
    # Padding is zero: what is moved is the index plus one.
    shape = graph.inputs[0].shape
    index = np.arange(1, int(np.prod(shape)) + 1, dtype=np.float64).reshape(shape)
    proto = to_proto(graph)
    try:
        results = run_session(open_session(proto.SerializeToString()), {"source": index})
    except (ModelError, DataError):
        return None  # the amounts do not fit the shape: found while loading, or running
    return [result.astype(np.int32) - 1 for result in results]


def _without_fill(node: gs.Node) -> list[gs.Tensor]:
    """The inputs of a region's node; zeros to pad with have the model's type, not the index's."""
    return [
        gs.Variable.empty() if node.op == "Pad" and i == 2 else t for i, t in enumerate(node.inputs)
    ]


def _structure(region: Region) -> tuple[object, ...]:
    number = {id(t): i for i, t in enumerate(region.sources)}
    parts: list[object] = []
    for node in region.nodes:
        reads = tuple(
            (values(t).dtype.str, values(t).shape, values(t).tobytes())
            if is_constant(t)
            else number.get(id(t), "")
            for t in node.inputs
        )
        for tensor in node.outputs:
            number[id(tensor)] = len(number)
        attrs = tuple(sorted((name, repr(value)) for name, value in node.attrs.items()))
        parts.append((node.op, attrs, reads, len(node.outputs)))
    return (*parts, tuple(number[id(t)] for t in region.results))


def _extract(region: Region, shape: Sequence[int], opset: int) -> gs.Graph:
    """The region as a graph of its own, from `source` to its results, on float64."""
    copies: dict[int, gs.Tensor] = {
        id(region.sources[0]): gs.Variable("source", np.float64, list(shape))
    }

    def copy(tensor: gs.Tensor) -> gs.Tensor:
        if tensor.is_empty():
            return gs.Variable.empty()
        if id(tensor) not in copies:
            name = f"t{len(copies)}"
            stored = is_constant(tensor)
            copies[id(tensor)] = (
                gs.Constant(name, values(tensor)) if stored else gs.Variable(name, np.float64)
            )
        return copies[id(tensor)]

    nodes = [
        gs.Node(
            node.op,
            f"n{i}",
            dict(node.attrs),
            [copy(t) for t in _without_fill(node)],
            [copy(t) for t in node.outputs],
        )
        for i, node in enumerate(region.nodes)
    ]
    results = []
    for i, tensor in enumerate(region.results):
        # One node each: a result may be the source itself, or be asked for twice.
        results.append(gs.Variable(f"result{i}", np.float64))
        nodes.append(gs.Node("Identity", f"out{i}", {}, [copy(tensor)], [results[-1]]))
    domains = [onnx.helper.make_opsetid("", opset)]
    source = copies[id(region.sources[0])]
    return gs.Graph(nodes, [source], results, opset=opset, import_domains=domains, ir_version=_IR)
