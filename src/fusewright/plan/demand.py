"""Which tensors the quantized groups want in which format, and what a pair may move through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import onnx_graphsurgeon as gs

from fusewright.graph.layout import data_readers, moved_inputs
from fusewright.graph.walk import attribute, is_constant
from fusewright.plan.plan import Group, Plan, node_index

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
        if not group.reads_quantized:
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


def last_readers(tensor: gs.Tensor, opset: int) -> list[gs.Node]:
    """The nodes that compute with `tensor`, behind those that only move its elements."""
    found: list[gs.Node] = []
    for node in data_readers(tensor):
        if any(t is tensor for t in data_inputs(node, opset)):
            found += [reader for t in node.outputs for reader in last_readers(t, opset)]
        else:
            found.append(node)
    return found


def formats_of(groups: Iterable[Group]) -> list[str]:
    """The formats that groups read tensors in, the commonest first."""
    counts = Counter(group.decision for group in groups if group.reads_quantized)
    return sorted(counts, key=lambda name: (-counts[name], name))


def settle_unweighted(plan: Plan) -> list[Group]:
    """Groups without weights whose output is not wholly read in their format: they stay float.

    From the last to the first: switching one off takes the quantized reader from those in front.
    """
    graph, opset = plan.model.graph, plan.model.opset
    groups = [group for group in plan.groups if group.reads_quantized]
    if not any(_needs_output(group, plan) for group in groups):
        return []
    nodes = node_index(graph)
    position = {name: i for i, name in enumerate(nodes)}
    outputs = frozenset(id(t) for t in graph.outputs)
    edges = {
        name: demanded_edges((g for g in groups if g.decision == name), nodes)
        for name in formats_of(groups)
    }
    dropped: list[Group] = []
    for group in sorted(groups, key=lambda g: -position[g.members[-1]]):
        written, mine = nodes[group.members[-1]].outputs[0], edges[group.decision]
        if _needs_output(group, plan) and not is_wholly_demanded(written, mine, outputs, opset):
            dropped.append(group)
            for key in demanded_edges((group,), nodes):
                del mine[key]
    return dropped


def _needs_output(group: Group, plan: Plan) -> bool:
    """Whether a quantized group must be read in its format too; attention by the target's row."""
    if not group.spec.needs_quantized_output:
        return False
    limits = plan.target.attention.get(group.decision)
    return limits is None or "head_size" not in group.details or limits.output_pair
