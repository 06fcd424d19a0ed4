"""Which tensors the quantized groups want in INT8, and what a Q/DQ pair may move through."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_graphsurgeon as gs

from fusewright.graph.layout import data_readers, moved_inputs
from fusewright.graph.walk import attribute, is_constant
from fusewright.plan.plan import Group, node_index

Edge = tuple[int, int]


def data_inputs(node: gs.Node, opset: int) -> tuple[gs.Tensor, ...]:
    """The inputs through which a pair behind `node` may move; empty where it may not.

    DQ(Q(op(x))) = op(DQ(Q(x))) for what only moves or selects elements. AveragePool, Resize and
    GlobalAveragePool compute new values and do not commute.
    """
    selects = node.op == "MaxPool" and all(not t.outputs for t in node.outputs[1:])
    if node.domain is None and (selects or _pads_with_own_values(node, opset)):
        return (node.inputs[0],)
    return moved_inputs(node, opset)


def _pads_with_own_values(node: gs.Node, opset: int) -> bool:
    return node.op == "Pad" and bool(attribute(node, "mode", opset) != "constant")


def edge(node: gs.Node, index: int) -> Edge:
    """An input slot of a node, as a key."""
    return id(node), index


def demanded_edges(groups: Iterable[Group], nodes: dict[str, gs.Node]) -> dict[Edge, gs.Tensor]:
    """Every input slot that a quantized group's contract wants behind a Q/DQ pair."""
    edges: dict[Edge, gs.Tensor] = {}
    for group in groups:
        if not group.is_quantized:
            continue
        wanted = {group.inputs[i] for i in group.inputs_to_quantize}
        for name in group.members:
            node = nodes[name]
            for i, tensor in enumerate(node.inputs):
                if tensor.name in wanted and not is_constant(tensor):
                    edges[edge(node, i)] = tensor
        for name, slot in (*((p.node, p.slot) for p in group.fixed), *group.interior):
            node = nodes[name]
            edges[edge(node, slot)] = node.inputs[slot]
    return edges


def is_wholly_demanded(
    tensor: gs.Tensor, edges: dict[Edge, gs.Tensor], outputs: frozenset[int], opset: int
) -> bool:
    """Whether everything that reads `tensor`, through movers too, reads it quantized."""
    if id(tensor) in outputs or not data_readers(tensor):
        return False
    for node in data_readers(tensor):
        slots = [i for i, t in enumerate(node.inputs) if t is tensor]
        if slots and all(edge(node, i) in edges for i in slots):
            continue
        moved = any(t is tensor for t in data_inputs(node, opset))
        if not moved or not all(
            is_wholly_demanded(t, edges, outputs, opset) for t in node.outputs if data_readers(t)
        ):
            return False
        if any(id(t) in outputs for t in node.outputs):
            return False
    return True


def settle_unweighted(groups: Iterable[Group], graph: gs.Graph, opset: int) -> list[Group]:
    """Groups without weights whose output is not wholly read in INT8, and so must stay float.

    From the last to the first: switching one off takes the quantized reader from those in front.
    """
    groups = [group for group in groups if group.is_quantized]
    if not any(group.spec.needs_quantized_output for group in groups):
        return []
    nodes = node_index(graph)
    position = {name: i for i, name in enumerate(nodes)}
    outputs = frozenset(id(t) for t in graph.outputs)
    edges = demanded_edges(groups, nodes)
    dropped: list[Group] = []
    for group in sorted(groups, key=lambda g: -position[g.members[-1]]):
        written = nodes[group.members[-1]].outputs[0]
        needs = group.spec.needs_quantized_output
        if needs and not is_wholly_demanded(written, edges, outputs, opset):
            dropped.append(group)
            for key in demanded_edges((group,), nodes):
                del edges[key]
    return dropped
