"""What a graph is made of, kept so that edits can be taken back: the nodes and tensors themselves.

A copy of a graph of 100,000 nodes takes seconds; this takes tenths of one, and what knows the
nodes by name or identity still does afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import onnx_graphsurgeon as gs

from fusewright.graph.collector import without_gc


class _Node(NamedTuple):
    node: gs.Node
    attrs: dict[str, Any]
    inputs: list[gs.Tensor]
    outputs: list[gs.Tensor]


@dataclass(frozen=True)
class _Scope:
    """One graph: the main one, or a body of an If, Loop or Scan."""

    graph: gs.Graph
    nodes: list[_Node]
    inputs: list[gs.Tensor]
    outputs: list[gs.Tensor]


class Snapshot:
    """A graph as it is now, its stored values apart: those are shared, and not to be changed."""

    def __init__(self, graph: gs.Graph) -> None:
        """Looks at every node and tensor once, those of bodies too."""
        with without_gc():
            self._scopes = [
                _Scope(scope, [_seen(n) for n in scope.nodes], [*scope.inputs], [*scope.outputs])
                for scope in (graph, *graph.subgraphs(recursive=True))
            ]
            self._tensors = {
                id(tensor): (tensor, tensor.name, tensor.dtype)
                for scope in self._scopes
                for tensor in _tensors(scope)
            }

    def restore(self) -> None:
        """Brings the graph back, in place; nodes that were added since lie loose."""
        for scope in self._scopes:
            for node in scope.graph.nodes:
                node.inputs.clear()
                node.outputs.clear()
        for tensor, name, dtype in self._tensors.values():
            tensor.name = name
            if isinstance(tensor, gs.Variable):  # that of a stored tensor is its values'
                tensor.dtype = dtype
        for scope in self._scopes:
            for kept in scope.nodes:
                kept.node.attrs = dict(kept.attrs)
                kept.node.inputs, kept.node.outputs = kept.inputs, kept.outputs
            scope.graph.nodes = [kept.node for kept in scope.nodes]
            scope.graph.inputs, scope.graph.outputs = [*scope.inputs], [*scope.outputs]


def _seen(node: gs.Node) -> _Node:
    return _Node(node, dict(node.attrs), [*node.inputs], [*node.outputs])


def _tensors(scope: _Scope) -> Iterator[gs.Tensor]:
    yield from scope.inputs
    yield from scope.outputs
    for kept in scope.nodes:
        yield from kept.inputs
        yield from kept.outputs
