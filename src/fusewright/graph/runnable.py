"""The part of a model that onnxruntime can run, where custom operators stand in the way."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fusewright.graph.walk import reads, toposort


def is_custom(node: gs.Node, custom: frozenset[str]) -> bool:
    """Whether the node is one of the operators listed as `domain::op`, or has one inside."""
    inner = (n for subgraph in node.subgraphs(recursive=True) for n in subgraph.nodes)
    return any(f"{n.domain or 'ai.onnx'}::{n.op}" in custom for n in (node, *inner))


def out_of_reach(graph: gs.Graph, custom: frozenset[str]) -> list[gs.Node]:
    """Custom nodes and everything that depends on one."""
    if not custom:
        return []
    lost: set[int] = set()
    found: list[gs.Node] = []
    for node in toposort(graph.nodes):
        if is_custom(node, custom) or any(id(p) in lost for t in reads(node) for p in t.inputs):
            lost.add(id(node))
            found.append(node)
    return found


def read_beyond(graph: gs.Graph, custom: frozenset[str]) -> dict[str, str]:
    """Computed tensors that a node out of reach reads → that node, for tables: `Plugin 'nms'`."""
    lost = out_of_reach(graph, custom)
    made = {id(t) for node in lost for t in node.outputs}
    given = {id(t) for t in graph.inputs}
    found: dict[str, str] = {}
    for node in lost:
        for tensor in reads(node):
            if isinstance(tensor, gs.Variable) and tensor.name and id(tensor) not in made | given:
                found.setdefault(tensor.name, f"{node.op} '{node.name}'")
    return found


def runnable_part(graph: gs.Graph, custom: frozenset[str]) -> gs.Graph:
    """A copy of what does not depend on custom operators.

    Its outputs are the model's outputs that can still be computed, and the tensors that the rest
    reads.
    """
    if not custom:
        return graph
    graph = graph.copy()
    lost = out_of_reach(graph, custom)
    gone = {id(node) for node in lost}
    made = {id(t) for node in lost for t in node.outputs}
    tensors = graph.tensors()
    outputs = {t.name: t for t in graph.outputs if id(t) not in made}
    outputs |= {name: tensors[name] for name in read_beyond(graph, custom)}
    for node in lost:
        node.inputs.clear()
        node.outputs.clear()
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]
    graph.outputs = list(outputs.values())
    return graph
