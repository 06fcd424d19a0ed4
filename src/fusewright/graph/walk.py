"""Reading a gs.Graph: producers, constants, attributes with their schema defaults, order, depth.

gs.Tensor compares by name and gs.Node by content, so identity (`is`, `id`) is used throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

STANDARD_DOMAINS = (None, "", "ai.onnx")
PASS_ON = "Sum"
"""With one input it computes nothing: `quantize.fence` says where such a node stands, and why."""


def is_constant(tensor: gs.Tensor) -> bool:
    """Whether the tensor's value is stored in the file."""
    return isinstance(tensor, gs.Constant)


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that writes the tensor; None for graph inputs, constants and omitted inputs."""
    return tensor.inputs[0] if tensor.inputs else None


def values(tensor: gs.Tensor) -> np.ndarray:
    """A constant's array."""
    array: np.ndarray = tensor.values
    return array


def peek(tensor: gs.Tensor) -> np.ndarray:
    """A constant's array, read without keeping it: large weights stay in the file's own form."""
    held = tensor._values
    array: np.ndarray = held.load() if isinstance(held, LazyValues) else held
    return array


def scalar(tensor: gs.Tensor) -> float | None:
    """The value of a one-element numeric constant of any rank, else None."""
    if not is_constant(tensor) or int(np.prod(tensor.shape, dtype=np.int64)) != 1:
        return None
    array = values(tensor)
    known = array.dtype.kind in "fiub" or array.dtype == ml_dtypes.bfloat16
    return float(array.reshape(-1)[0]) if known else None


def input_at(node: gs.Node, index: int) -> gs.Tensor | None:
    """Input `index`, or None where it is omitted."""
    if index >= len(node.inputs) or node.inputs[index].is_empty():
        return None
    return node.inputs[index]


@lru_cache(maxsize=4096)
def _schema_default(op: str, opset: int, name: str) -> Any:
    if not onnx.defs.has(op, max_inclusive_version=opset):
        return None
    attribute = onnx.defs.get_schema(op, opset).attributes.get(name)
    if attribute is None or not attribute.default_value.name:
        return None
    value = onnx.helper.get_attribute_value(attribute.default_value)
    return value.decode() if isinstance(value, bytes) else value


def attribute(node: gs.Node, name: str, opset: int) -> Any:
    """An attribute's value, or its default in the schema of `opset`, or None."""
    if name in node.attrs:
        return node.attrs[name]
    return _schema_default(node.op, opset, name) if node.domain in STANDARD_DOMAINS else None


def axes_of(node: gs.Node, opset: int, rank: int | None) -> list[int] | None:
    """Axes of a Reduce/Squeeze/Unsqueeze op (attribute or constant input), made non-negative.

    None where they are computed, or negative with an unknown rank; an empty list means all.
    """
    axes = attribute(node, "axes", opset)
    if axes is None:
        tensor = input_at(node, 1)
        if tensor is not None and not is_constant(tensor):
            return None
        axes = [] if tensor is None else [int(a) for a in values(tensor).reshape(-1)]
    if any(a < 0 for a in axes) and rank is None:
        return None
    return [a + rank if a < 0 and rank is not None else a for a in axes]


def passes_on(node: gs.Node) -> bool:
    """Whether a node is a Sum of one input."""
    return node.op == PASS_ON and node.domain in STANDARD_DOMAINS and len(node.inputs) == 1


def rank_of(tensor: gs.Tensor) -> int | None:
    """The tensor's rank where it is known."""
    return None if tensor.shape is None else len(tensor.shape)


def captured(node: gs.Node) -> Iterator[gs.Tensor]:
    """Tensors of enclosing graphs that the node's subgraphs (If, Loop, Scan) read."""
    for subgraph in node.subgraphs():
        inner = {id(t) for n in subgraph.nodes for t in n.outputs}
        inner |= {id(t) for t in subgraph.inputs}
        reads = [t for n in subgraph.nodes for t in (*n.inputs, *captured(n))]
        yield from (t for t in (*reads, *subgraph.outputs) if id(t) not in inner)


def reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """Everything a node needs: its inputs and what its subgraphs capture."""
    yield from node.inputs
    if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        yield from captured(node)


def toposort(nodes: Iterable[gs.Node]) -> list[gs.Node]:
    """Nodes in an order where each follows its producers, else as near as can be to the given one.

    Iterative: graphsurgeon's own sort recurses and fails on a few thousand badly ordered nodes.

    Raises:
        ValueError: the nodes form a cycle; the message names one of them.
    """
    nodes = list(nodes)
    if _is_sorted(nodes):
        return nodes
    position = {id(node): i for i, node in enumerate(nodes)}
    waiting = [0] * len(nodes)
    followers: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        makers = {id(p) for t in reads(node) for p in t.inputs}
        sources = {position[maker] for maker in makers if maker in position}
        waiting[i] = len(sources)
        for source in sources:
            followers[source].append(i)
    ready = [i for i, count in enumerate(waiting) if not count]  # ascending: a heap
    order: list[gs.Node] = []
    while ready:
        i = heappop(ready)
        order.append(nodes[i])
        for follower in followers[i]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heappush(ready, follower)
    if len(order) < len(nodes):
        stuck = next(nodes[i] for i, count in enumerate(waiting) if count)
        raise ValueError(f"the graph has a cycle through node '{stuck.name}'")
    return order


def _is_sorted(nodes: list[gs.Node]) -> bool:
    ahead = {id(node) for node in nodes}
    for node in nodes:
        if any(id(p) in ahead for t in reads(node) for p in t.inputs):
            return False
        ahead.discard(id(node))
    return True


def levels(nodes: Iterable[gs.Node]) -> dict[int, int]:
    """For each node of a sorted list (by `id`), the number of nodes on its longest path back."""
    level: dict[int, int] = {}
    for node in nodes:
        above = [level.get(id(p), 0) for t in reads(node) for p in t.inputs]
        level[id(node)] = 1 + max(above, default=0)
    return level
