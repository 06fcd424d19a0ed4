"""The residual stream of a transformer in INT8, on request: by default it stays float.

What carries the stream, the sum behind each block, is read by the next norm and the next sum. Both
read it behind one pair; the branch that is added, from a Linear, gets none. A norm takes part where
its own output is read in INT8.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fusewright.graph.layout import region_behind
from fusewright.graph.walk import is_constant
from fusewright.match.linear import linear_at
from fusewright.plan.demand import Edge, demanded_edges, edge, formats_of, is_wholly_demanded
from fusewright.plan.plan import Plan, node_index
from fusewright.target import FORMATS

_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})


def stream_format(plan: Plan) -> str | None:
    """The format of a quantized stream: the plan's commonest one, but for those in blocks."""
    return next((name for name in formats_of(plan.groups) if FORMATS[name].block is None), None)


def stream_tensors(plan: Plan) -> frozenset[str]:
    """The tensors of the stream that can have a pair, in the format of the stream."""
    form, nodes = stream_format(plan), node_index(plan.model.graph)
    groups = [group for group in plan.groups if group.decision == form]
    return frozenset(t.name for t in residual_edges(plan, demanded_edges(groups, nodes)).values())


def residual_edges(plan: Plan, demanded: dict[Edge, gs.Tensor]) -> dict[Edge, gs.Tensor]:
    """The input slots that read the stream, beside those that contracts demand."""
    graph, opset = plan.model.graph, plan.model.opset
    nodes, outputs = node_index(graph), frozenset(id(t) for t in graph.outputs)
    owned = {
        id(nodes[m])
        for group in plan.groups
        if group.apply and group.kind not in ("LayerNorm", "RMSNorm")
        for m in group.members
    }
    edges: dict[Edge, gs.Tensor] = {}
    for node in graph.nodes:
        if id(node) in owned:
            continue
        if node.op in _NORMS and is_wholly_demanded(node.outputs[0], demanded, outputs, opset):
            edges[edge(node, 0)] = node.inputs[0]
        elif node.op == "Add" and not any(is_constant(t) for t in node.inputs):
            branches = [_is_branch(t, opset) for t in node.inputs]
            if sorted(branches) == [False, True]:
                slot = branches.index(False)
                edges[edge(node, slot)] = node.inputs[slot]
    return edges


def _is_branch(tensor: gs.Tensor, opset: int) -> bool:
    sources = region_behind([tensor], opset).sources
    return len(sources) == 1 and linear_at(sources[0]) is not None
