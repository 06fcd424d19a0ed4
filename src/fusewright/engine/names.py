"""Nodes of an ONNX file under the names that TensorRT gives them in its layer list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from fusewright.plan.collapse import DOMAIN
from fusewright.plan.plan import HEAVY_OPS

# Decides what an engine costs, beside the ops that groups are made of.
_HEAVY = HEAVY_OPS | {"DeformConv"}


def group_names(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the group calls of a collapsed file."""
    return frozenset(_name(node) for node in model.graph.node if node.domain == DOMAIN)


def heavy_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the heavy nodes, those inside functions as `node | call (Function)`."""
    functions = {(f.domain, f.name): f for f in model.functions}
    return tuple(_heavy(model.graph.node, functions))


def _heavy(
    nodes: Iterable[onnx.NodeProto], functions: dict[tuple[str, str], onnx.FunctionProto]
) -> Iterator[str]:
    for node in nodes:
        body = functions.get((node.domain, node.op_type))
        if body is not None:
            call = f"{_name(node)} ({node.op_type})"
            yield from (f"{inner} | {call}" for inner in _heavy(body.node, functions))
        elif node.op_type in _HEAVY and node.domain in ("", "ai.onnx"):
            yield _name(node)


def _name(node: onnx.NodeProto) -> str:
    return node.name or f"node_of_{node.output[0]}"
