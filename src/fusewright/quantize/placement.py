"""Placing: where Q/DQ pairs go. Decided here, inserted by `insert`.

One pair per tensor and format, however many read it. A pair moves up through ops that only move
elements, so that they run in its format and the kernel that writes the tensor writes it quantized;
all inputs of a Concat that it moves through share one scale. Where a tensor is read in two formats,
neither pair moves further. Formats in blocks stay where they are read: what moves elements would
give the blocks other elements.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import onnx_graphsurgeon as gs

from fusewright.graph.layout import data_readers
from fusewright.graph.walk import is_constant
from fusewright.plan.demand import Edge, data_inputs, demanded_edges, edge, formats_of
from fusewright.plan.plan import Group, Plan, node_index
from fusewright.quantize.residual import residual_edges, stream_format
from fusewright.target import FORMATS
from fusewright.target.precision import INT8


@dataclass(frozen=True)
class Site:
    """One activation pair.

    Attributes:
        tensor: what is quantized.
        readers: the (node name, input index) slots that read it behind the pair.
        scale: name of the scale; sites with one name share it.
        format: what it is quantized to.
    """

    tensor: str
    readers: tuple[tuple[str, int], ...]
    scale: str
    format: str = INT8


@dataclass(frozen=True)
class WeightSite:
    """One weight pair.

    Attributes:
        tensor: the stored weight.
        readers: the (node name, input index) slots that read it behind the pair.
        axis: of the channels, or of the blocks; None is per tensor.
        format: what it is quantized to.
        block_size: elements along `axis` that share a scale; None where a channel has one.
    """

    tensor: str
    readers: tuple[tuple[str, int], ...]
    axis: int | None
    format: str = INT8
    block_size: int | None = None


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

    @property
    def formats(self) -> dict[str, str]:
        """Scale name → the format of its pairs."""
        return {site.scale: site.format for site in self.activations}

    def lines(self) -> list[str]:
        """One text line per site, for golden files and diffs."""
        pairs = [
            f"{s.tensor} [{s.scale}]{_named(s.format)} -> {_slots(s.readers)}"
            for s in self.activations
        ]
        axes = [
            f"{w.tensor} axis {w.axis}{_blocked(w)}{_named(w.format)} -> {_slots(w.readers)}"
            for w in self.weights
        ]
        return pairs + axes


def _named(name: str) -> str:
    return "" if name == INT8 else f" {name}"


def _blocked(site: WeightSite) -> str:
    return "" if site.block_size is None else f" blocks of {site.block_size}"


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


def place(plan: Plan, residual: Collection[str] = ()) -> Placement:
    """Sites of the plan's quantized groups on its normalized graph.

    Args:
        plan: what is quantized.
        residual: those of the `stream_tensors` that get a pair too, in the `stream_format`.
    """
    if not any(group.is_quantized for group in plan.groups):
        return Placement((), (), {})
    nodes = node_index(plan.model.graph)
    sites: list[Site] = []
    observe: dict[str, set[str]] = {}
    fixed: dict[str, float] = {}
    for name in formats_of(plan.groups):
        placing = _Placing(plan, nodes, name, taken=frozenset((*observe, *fixed)))
        placing.run(residual if name == stream_format(plan) else ())
        sites += placing.sites
        observe |= placing.observe
        fixed |= placing.fixed
    position = {name: i for i, name in enumerate(nodes)}
    sites.sort(key=lambda s: (position[s.readers[0][0]], s.readers[0][1]))
    order = {site.scale: None for site in sites if site.scale in observe.keys() - fixed.keys()}
    return Placement(
        tuple(sites),
        _weights(plan, nodes),
        {scale: tuple(sorted(observe[scale])) for scale in order},
        fixed,
    )


class _Placing:
    """The sites of one format: its pairs move where nothing of another format is in the way."""

    def __init__(
        self, plan: Plan, nodes: dict[str, gs.Node], name: str, taken: frozenset[str]
    ) -> None:
        self._plan, self._nodes, self._format, self._taken = plan, nodes, name, taken
        self._groups = [group for group in plan.groups if group.decision == name]
        self._scales = _Scales()
        self.sites: list[Site] = []
        self.observe: dict[str, set[str]] = defaultdict(set)
        self.fixed: dict[str, float] = {}

    def run(self, residual: Collection[str]) -> None:
        plan, graph, nodes = self._plan, self._plan.model.graph, self._nodes
        owned = {
            id(nodes[m])
            for g in plan.groups
            if g.apply and not g.spec.moves_pairs
            for m in g.members
        }
        demanded = demanded_edges(self._groups, nodes)
        if residual:
            stream = residual_edges(plan, demanded)
            demanded |= {e: t for e, t in stream.items() if t.name in residual}
        edges, form = dict(demanded), FORMATS[self._format]
        for node in reversed(graph.nodes):
            if form.block is None and id(node) not in owned:
                _move_up(node, edges, self._scales, graph, plan.model.opset)
        for tensor in demanded.values() if form.has_stored_scales else ():
            self.observe[self._scale(tensor.name)].add(tensor.name)
        self.sites = self._sites(edges)
        self.fixed = {
            self._scale(nodes[pair.node].inputs[pair.slot].name): pair.threshold
            for group in self._groups
            if group.reads_quantized
            for pair in group.fixed
        }

    def _scale(self, tensor: str) -> str:
        """Name of the scale of a tensor; one that another format has already says its format."""
        name = self._scales.find(tensor)
        return f"{name}:{self._format}" if name in self._taken else name

    def _sites(self, edges: dict[Edge, gs.Tensor]) -> list[Site]:
        names = {id(node): name for name, node in self._nodes.items()}
        position = {name: i for i, name in enumerate(self._nodes)}
        readers: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for (node, index), tensor in edges.items():
            readers[tensor.name].append((names[node], index))
        return [
            Site(
                tensor,
                tuple(sorted(slots, key=lambda s: (position[s[0]], s[1]))),
                self._scale(tensor),
                self._format,
            )
            for tensor, slots in readers.items()
        ]


def _move_up(
    node: gs.Node, edges: dict[Edge, gs.Tensor], scales: _Scales, graph: gs.Graph, opset: int
) -> None:
    """Moves the pairs behind `node` to its inputs, where all its readers want them."""
    sources = data_inputs(node, opset)
    results = [t for t in node.outputs if data_readers(t)]
    if not sources or not results:
        return
    fixed = {id(t) for t in graph.outputs}
    # Who asks for the shape alone does not care on which side of the pair it reads; who reads a
    # tensor at several inputs is listed once for each.
    slots = {
        edge(reader, i)
        for t in results
        for reader in data_readers(t)
        for i, x in enumerate(reader.inputs)
        if x is t
    }
    if not slots <= edges.keys() or any(id(t) in fixed for t in node.outputs):
        return
    if sum(len(data_readers(t)) for t in results) > len(slots):
        return  # read inside a subgraph
    for key in slots:
        del edges[key]
    for i, tensor in enumerate(node.inputs[: len(sources)]):
        edges[edge(node, i)] = tensor
        for result in results:
            scales.join(tensor.name, result.name)


def _weights(plan: Plan, nodes: dict[str, gs.Node]) -> tuple[WeightSite, ...]:
    readers: dict[WeightSite, list[tuple[str, int]]] = defaultdict(list)
    for group in plan.groups:
        for name, axis in group.spec.weights.items() if group.is_quantized else ():
            for member in group.members:
                for i, tensor in enumerate(nodes[member].inputs):
                    if is_constant(tensor) and tensor.name == group.parameters.get(name):
                        readers[_weight_site(tensor.name, axis, group, plan)].append((member, i))
    return tuple(replace(site, readers=tuple(slots)) for site, slots in readers.items())


def _weight_site(tensor: str, axis: int | None, group: Group, plan: Plan) -> WeightSite:
    if FORMATS[group.decision].weights_only:
        # Blocks run along the inputs of a Linear [in, out].
        return WeightSite(tensor, (), 0, group.decision, plan.block_size)
    if FORMATS[group.decision].block is not None:
        return WeightSite(tensor, (), 0, group.decision, FORMATS[group.decision].block)
    return WeightSite(tensor, (), None if plan.per_tensor_weights else axis, group.decision)
