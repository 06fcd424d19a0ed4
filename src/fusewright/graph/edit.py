"""Editing a gs.Graph: the few moves that every rewrite is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_graphsurgeon as gs

from fusewright.graph.walk import toposort


def detach(node: gs.Node) -> None:
    """Cuts a node off its tensors; `sweep` drops it from the graph."""
    node.inputs.clear()
    node.outputs.clear()


def redirect(old: gs.Tensor, new: gs.Tensor) -> None:
    """Makes every consumer of `old` read `new`."""
    for node in list(old.outputs):
        for i, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[i] = new


def bypass(graph: gs.Graph, node: gs.Node, source: gs.Tensor) -> bool:
    """Removes a node whose first output equals `source`; says whether that was possible.

    The names of graph outputs stay: where the node writes one, the producer of `source` writes it
    instead, which it cannot when `source` is itself part of the interface, or stored.
    """
    result = node.outputs[0]
    if not any(t is result for t in graph.outputs):
        detach(node)
        redirect(result, source)
        return True
    fixed = any(t is source for t in (*graph.inputs, *graph.outputs))
    if fixed or isinstance(source, gs.Constant) or not source.inputs:
        return False
    maker = source.inputs[0]
    position = next(i for i, t in enumerate(maker.outputs) if t is source)
    detach(node)
    redirect(source, result)
    maker.outputs[position] = result
    return True


def put_in_front(graph: gs.Graph, runs: Iterable[Sequence[gs.Node]]) -> None:
    """Puts each run of new nodes in front of the first node that reads what its last one writes."""
    position = {id(node): i for i, node in enumerate(graph.nodes)}
    before: dict[int, list[gs.Node]] = {}
    for run in runs:
        first = min(position[id(reader)] for reader in run[-1].outputs[0].outputs)
        before.setdefault(first, []).extend(run)
    graph.nodes = [n for i, node in enumerate(graph.nodes) for n in (*before.get(i, ()), node)]


def sweep(graph: gs.Graph) -> None:
    """Drops nodes that nothing reads, and sorts the rest."""
    needed = {id(t) for t in graph.outputs}
    kept: list[gs.Node] = []
    for node in reversed(toposort(graph.nodes)):
        if any(id(t) in needed or t.outputs for t in node.outputs):
            kept.append(node)
        else:
            detach(node)
    graph.nodes = kept[::-1]


class Names:
    """Hands out names that the graph does not use yet."""

    def __init__(self, graph: gs.Graph, reserved: Iterable[str] = ()) -> None:
        """Collects the tensor and node names of `graph`; `reserved` are as good as used."""
        self._used = {t.name for n in graph.nodes for t in (*n.inputs, *n.outputs)}
        self._used |= {t.name for t in (*graph.inputs, *graph.outputs)}
        self._used |= {n.name for n in graph.nodes}
        self._used.update(reserved)
        for subgraph in graph.subgraphs(recursive=True):
            for node in subgraph.nodes:
                self._used |= {node.name, *(t.name for t in (*node.inputs, *node.outputs))}

    def fresh(self, wanted: str) -> str:
        """`wanted`, or with the first free number behind it."""
        name, number = wanted, 1
        while name in self._used:
            number += 1
            name = f"{wanted}_{number}"
        self._used.add(name)
        return name
