"""Placing: where Q/DQ pairs go. Decided here, inserted by `insert`.

One pair per tensor, however many read it. A pair moves up through ops that only move elements, so
that they run in INT8 and the kernel that writes the tensor writes it quantized; all inputs of a
Concat that it moves through share one scale.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from fusewright.graph.layout import data_readers
from fusewright.graph.walk import is_constant
from fusewright.plan.demand import Edge, data_inputs, demanded_edges, edge
from fusewright.plan.plan import Plan, node_index
from fusewright.quantize.residual import residual_edges


@dataclass(frozen=True)
class Site:
    """One activation pair.

    Attributes:
        tensor: what is quantized.
        readers: the (node name, input index) slots that read it behind the pair.
        scale: name of the scale; sites with one name share it.
    """

    tensor: str
    readers: tuple[tuple[str, int], ...]
    scale: str


@dataclass(frozen=True)
class WeightSite:
    """One weight pair; `axis` None is per tensor."""

    tensor: str
    readers: tuple[tuple[str, int], ...]
    axis: int | None


@dataclass(frozen=True)
class Placement:
    """Every Q/DQ site of a model.

    Attributes:
        observe: scale name → tensors whose values decide it, which are those that the groups
            read: behind a MaxPool or Slice that a pair moved through, not in front of it.
        fixed: scale name → clipping threshold that a contract fixes; nothing is observed for it.
    """

    activations: tuple[Site, ...]
    weights: tuple[WeightSite, ...]
    observe: dict[str, tuple[str, ...]]
    fixed: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """One text line per site, for golden files and diffs."""
        pairs = [f"{s.tensor} [{s.scale}] -> {_slots(s.readers)}" for s in self.activations]
        axes = [f"{w.tensor} axis {w.axis} -> {_slots(w.readers)}" for w in self.weights]
        return pairs + axes


def _slots(readers: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{name}:{index}" for name, index in readers)


class _Scales:
    """Tensors that share a scale: union-find over tensor names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        self._parent.setdefault(name, name)
        while self._parent[name] != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name

    def join(self, first: str, second: str) -> None:
        self._parent[self.find(second)] = self.find(first)


def place(plan: Plan, int8_residual: bool = False) -> Placement:
    """Sites of the plan's quantized groups on its normalized graph.

    Args:
        int8_residual: the residual stream between norms and sums too.
    """
    if not any(group.is_quantized for group in plan.groups):
        return Placement((), (), {})
    graph, opset = plan.model.graph, plan.model.opset
    nodes = node_index(graph)
    names = {id(node): node.name for node in graph.nodes}
    owned = {
        id(nodes[m]) for g in plan.groups if g.apply and not g.spec.moves_pairs for m in g.members
    }
    demanded = demanded_edges(plan.groups, nodes)
    if int8_residual:
        demanded |= residual_edges(plan, demanded)
    scales = _Scales()
    edges = dict(demanded)
    for node in reversed(graph.nodes):
        if id(node) not in owned:
            _move_up(node, edges, scales, graph, opset)
    observe = defaultdict(set)
    for tensor in demanded.values():
        observe[scales.find(tensor.name)].add(tensor.name)
    sites = _sites(edges, names, scales, graph)
    fixed = {
        scales.find(nodes[pair.node].inputs[pair.slot].name): pair.threshold
        for group in plan.groups
        if group.is_quantized
        for pair in group.fixed
    }
    order = {site.scale: None for site in sites if site.scale not in fixed}
    return Placement(
        sites,
        _weights(plan, nodes),
        {scale: tuple(sorted(observe[scale])) for scale in order},
        fixed,
    )


def _move_up(
    node: gs.Node, edges: dict[Edge, gs.Tensor], scales: _Scales, graph: gs.Graph, opset: int
) -> None:
    """Moves the pairs behind `node` to its inputs, where all its readers want them."""
    sources = data_inputs(node, opset)
    results = [t for t in node.outputs if data_readers(t)]
    if not sources or not results:
        return
    fixed = {id(t) for t in graph.outputs}
    # Who asks for the shape alone does not care on which side of the pair it reads.
    slots = [
        (edge(c, i), t)
        for t in results
        for c in data_readers(t)
        for i, x in enumerate(c.inputs)
        if x is t
    ]
    if any(key not in edges for key, _ in slots) or any(id(t) in fixed for t in node.outputs):
        return
    if sum(len(data_readers(t)) for t in results) > len(slots):
        return  # read inside a subgraph
    for key, _ in slots:
        del edges[key]
    for i, tensor in enumerate(node.inputs[: len(sources)]):
        edges[edge(node, i)] = tensor
        for result in results:
            scales.join(tensor.name, result.name)


def _sites(
    edges: dict[Edge, gs.Tensor], names: dict[int, str], scales: _Scales, graph: gs.Graph
) -> tuple[Site, ...]:
    readers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for (node, index), tensor in edges.items():
        readers[tensor.name].append((names[node], index))
    position = {node.name: i for i, node in enumerate(graph.nodes)}
    sites = [
        Site(
            tensor, tuple(sorted(slots, key=lambda s: (position[s[0]], s[1]))), scales.find(tensor)
        )
        for tensor, slots in readers.items()
    ]
    return tuple(sorted(sites, key=lambda s: (position[s.readers[0][0]], s.readers[0][1])))


def _weights(plan: Plan, nodes: dict[str, gs.Node]) -> tuple[WeightSite, ...]:
    readers: dict[tuple[str, int | None], list[tuple[str, int]]] = defaultdict(list)
    for group in plan.groups:
        if not group.is_quantized:
            continue
        for name, axis in group.spec.weights.items():
            for member in group.members:
                for i, tensor in enumerate(nodes[member].inputs):
                    if is_constant(tensor) and tensor.name == group.parameters.get(name):
                        readers[tensor.name, axis].append((member, i))
    return tuple(WeightSite(t, tuple(slots), axis) for (t, axis), slots in readers.items())
