"""Collapsing: each group becomes one call of a model-local function. Pure: the input graph stays.

The body holds the computation; weights, their Q/DQ and the boundary pairs stay outside. There is
one body per distinct structure, attributes and constants, under a unique name: bodies that differ
only by `overload` break TensorRT-RTX's parser and graphsurgeon's round trip.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.graph.collector import without_gc
from fusewright.graph.edit import Names
from fusewright.graph.walk import is_constant, passes_on, producer, reads, toposort
from fusewright.plan.plan import Group, Plan

DOMAIN = "fusewright"
VERSION = 1
# Model-local functions exist from this IR version on.
FUNCTIONS_IR = 8
# What is put between the nodes of a group after it was recognised.
_INSERTED = ("QuantizeLinear", "DequantizeLinear", "Cast")


@dataclass
class _Bodies:
    """Function bodies made so far, by structure."""

    opset: int
    by_key: dict[Hashable, gs.Function] = field(default_factory=dict)
    per_kind: dict[str, int] = field(default_factory=dict)

    def get(self, kind: str, region: _Region) -> gs.Function:
        # TensorRT's parser names a Q/DQ layer after its node and takes no name twice, so a body
        # that holds a pair serves one call.
        own = len(self.by_key) if any(node.op == "QuantizeLinear" for node in region.nodes) else ""
        key = (kind, region.key(), own)
        if key not in self.by_key:
            number = self.per_kind[kind] = self.per_kind.get(kind, 0) + 1
            name = kind if number == 1 else f"{kind}_{number}"
            self.by_key[key] = region.body(name, self.opset)
        return self.by_key[key]


@dataclass
class _Region:
    """The nodes of one group in the graph at hand, and what crosses their boundary."""

    nodes: list[gs.Node]
    inputs: list[gs.Tensor]
    outputs: list[gs.Tensor]
    interior: dict[int, gs.Constant]

    def key(self) -> Hashable:
        """Equal for regions that can share a body."""
        number = {id(t): i for i, t in enumerate(self.inputs)}
        parts = []
        for node in self.nodes:
            reads = tuple(self._reference(t, number) for t in node.inputs)
            for tensor in node.outputs:
                number.setdefault(id(tensor), len(number))
            writes = tuple(number[id(t)] if t.name else "" for t in node.outputs)
            parts.append((node.op, node.domain, _attributes(node), reads, writes))
        return tuple(parts), tuple(number[id(t)] for t in self.outputs)

    def _reference(self, tensor: gs.Tensor, number: dict[int, int]) -> Hashable:
        if tensor.is_empty():
            return ""
        if id(tensor) in self.interior:
            array = tensor.values
            return array.dtype.str, array.shape, array.tobytes()
        return number[id(tensor)]

    def body(self, name: str, opset: int) -> gs.Function:
        """The region as a function, its tensors and nodes named by position.

        Node names carry the body's, so that in an engine's layer list none is taken for a call.
        """
        inside: dict[int, gs.Tensor] = {}
        for i, tensor in enumerate(self.inputs):
            inside[id(tensor)] = gs.Variable(f"x{i}")
        nodes = []
        for i, node in enumerate(self.nodes):
            for tensor in node.inputs:
                if id(tensor) in self.interior and id(tensor) not in inside:
                    nodes.append(_constant_node(tensor, f"c{len(inside)}", name))
                    inside[id(tensor)] = nodes[-1].outputs[0]
            for tensor in node.outputs:
                if tensor.name:
                    inside[id(tensor)] = gs.Variable(f"y{len(inside)}")
            nodes.append(
                gs.Node(
                    node.op,
                    f"{name}.{node.op}_{i}",
                    dict(node.attrs),
                    [inside.get(id(t), gs.Variable.empty()) for t in node.inputs],
                    [inside.get(id(t), gs.Variable.empty()) for t in node.outputs],
                    domain=node.domain,
                )
            )
        return gs.Function(
            name,
            domain=DOMAIN,
            nodes=nodes,
            inputs=[inside[id(t)] for t in self.inputs],
            outputs=[inside[id(t)] for t in self.outputs],
            opset=opset,
            import_domains=[onnx.helper.make_opsetid("", opset)],
        )


@dataclass(frozen=True)
class _Call:
    name: str
    function: str
    region: _Region


def collapse(graph: gs.Graph, plan: Plan, groups: Iterable[Group] | None = None) -> gs.Graph:
    """A new graph in which every group of the plan that applies is one call.

    Args:
        graph: the flat graph, float or with Q/DQ; its node names are those the plan knows.
        groups: restricts which groups are collapsed.
    """
    chosen = [g for g in (plan.groups if groups is None else groups) if g.apply]
    with without_gc():
        return _collapse(graph, chosen)


def _collapse(graph: gs.Graph, groups: Sequence[Group]) -> gs.Graph:
    by_name = {node.name: node for node in graph.nodes}
    outputs = {id(t) for t in graph.outputs}
    bodies = _Bodies(int(graph.opset))
    names = Names(graph, (group.name for group in groups))
    inside: set[int] = set()
    calls: list[_Call] = []
    for group in groups:
        region = _region(group, by_name, outputs)
        inside.update(id(node) for node in region.nodes)
        taken = group.name in by_name and group.name not in group.members
        name = names.fresh(group.name) if taken else group.name
        calls.append(_Call(name, bodies.get(group.kind, region).name, region))
    rest = [node for node in graph.nodes if id(node) not in inside]
    return _assemble(graph, rest, calls, list(bodies.by_key.values()))


def _region(group: Group, by_name: dict[str, gs.Node], outputs: set[int]) -> _Region:
    nodes, scales = _with_what_lies_between([by_name[name] for name in group.members], group)
    made = {id(t) for node in nodes for t in node.outputs}
    written = [
        t
        for node in nodes
        for t in node.outputs
        if t.name and (id(t) in outputs or any(not any(c is n for n in nodes) for c in t.outputs))
    ]
    stored = set(group.parameters.values())
    found: dict[int, gs.Tensor] = {}
    interior: dict[int, gs.Constant] = {}
    for node in nodes:
        for tensor in node.inputs:
            if tensor.is_empty() or id(tensor) in made:
                continue
            if is_constant(tensor) and tensor.name not in stored and id(tensor) not in scales:
                interior[id(tensor)] = tensor
            else:
                found[id(tensor)] = tensor
    order = {name: i for i, name in enumerate((*group.inputs, *group.parameters.values()))}
    inputs = sorted(found.values(), key=lambda t: _place(t, order))
    place = {name: i for i, name in enumerate(group.outputs)}
    written.sort(key=lambda t: place.get(t.name, len(place)))  # q, k, v however the file has them
    return _Region(nodes, inputs, written, interior)


def _with_what_lies_between(
    members: Sequence[gs.Node], group: Group
) -> tuple[list[gs.Node], set[int]]:
    """The members with the Q/DQ pairs and Casts between them, and the pairs' calibrated scales.

    A calibrated scale is an input of the call, as a weight is; a fixed one belongs to the body.
    """
    inside = {id(node) for node in members}
    fixed = {(pair.node, pair.slot) for pair in group.fixed}
    nodes: dict[int, gs.Node] = {}
    scales: set[int] = set()
    for node in members:
        for i, tensor in enumerate(node.inputs):
            chain, maker = [], producer(tensor)
            while maker is not None and id(maker) not in inside and _is_inserted(maker):
                chain.append(maker)
                maker = producer(maker.inputs[0])
            if maker is None or id(maker) not in inside:
                continue
            nodes.update((id(between), between) for between in reversed(chain))
            if (node.name, i) not in fixed:
                scales.update(id(between.inputs[1]) for between in chain if len(between.inputs) > 1)
        nodes[id(node)] = node
    return list(nodes.values()), scales


def _is_inserted(node: gs.Node) -> bool:
    return node.op in _INSERTED or passes_on(node)


def _constant_node(tensor: gs.Constant, name: str, body: str) -> gs.Node:
    # A named node: the engine's layer list would call an unnamed one after its output.
    attrs = {"value": gs.Constant(f"{name}_value", tensor.values)}
    return gs.Node("Constant", f"{body}.Constant_{name}", attrs, outputs=[gs.Variable(name)])


def _place(tensor: gs.Tensor, order: Mapping[str, int]) -> int:
    """Where a tensor, or the one it was made from by a pair or a Cast, stands in `order`."""
    while tensor.name not in order:
        node = producer(tensor)
        if node is None or not _is_inserted(node):
            return len(order)
        tensor = node.inputs[0]
    return order[tensor.name]


def _attributes(node: gs.Node) -> Hashable:
    return tuple(sorted((name, _hashable(value)) for name, value in node.attrs.items()))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, gs.Constant):
        return bytes(value.values.tobytes())
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return tuple(value) if isinstance(value, list) else repr(value)


def _assemble(
    graph: gs.Graph, rest: Sequence[gs.Node], calls: Sequence[_Call], bodies: list[gs.Function]
) -> gs.Graph:
    """A new graph of copies of `rest`, and of the calls."""
    copies: dict[int, gs.Tensor] = {}

    def copy(tensor: gs.Tensor) -> gs.Tensor:
        if tensor.is_empty():
            return gs.Variable.empty()
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.copy()
            if isinstance(tensor, gs.Variable):
                copies[id(tensor)].type = tensor.type
        return copies[id(tensor)]

    nodes = []
    for node in rest:
        outer = {t.name: copy(t) for t in reads(node)}
        inputs, outputs = [copy(t) for t in node.inputs], [copy(t) for t in node.outputs]
        nodes.append(node.copy(inputs=inputs, outputs=outputs, tensor_map=outer))
    for call in calls:
        inputs = [copy(t) for t in call.region.inputs]
        outputs = [copy(t) for t in call.region.outputs]
        nodes.append(gs.Node(call.function, call.name, None, inputs, outputs, domain=DOMAIN))
    return gs.Graph(
        nodes=toposort(nodes),
        inputs=[copy(t) for t in graph.inputs],
        outputs=[copy(t) for t in graph.outputs],
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=[*graph.import_domains, onnx.helper.make_opsetid(DOMAIN, VERSION)],
        producer_name=graph.producer_name,
        producer_version=graph.producer_version,
        functions=[*graph.functions, *bodies],
        ir_version=max(graph.ir_version or FUNCTIONS_IR, FUNCTIONS_IR),
    )
