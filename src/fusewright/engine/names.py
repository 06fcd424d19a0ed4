"""Nodes of an ONNX file under the names that TensorRT gives them in its layer list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

GROUP_DOMAIN = "fusewright"
"""Domain of the local functions that groups are collapsed into."""

HEAVY_OPS = frozenset(
    {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Attention", "DeformConv"}
)
"""Operators whose data type decides what an engine costs."""


def group_names(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the group calls of a collapsed file."""
    return frozenset(_name(node) for node in model.graph.node if node.domain == GROUP_DOMAIN)


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
        elif node.op_type in HEAVY_OPS and node.domain in ("", "ai.onnx"):
            yield _name(node)


def _name(node: onnx.NodeProto) -> str:
    return node.name or f"node_of_{node.output[0]}"
