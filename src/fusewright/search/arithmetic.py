"""Multiply-adds of a group: what a lower precision saves, and neither kernels nor bytes show."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx_graphsurgeon as gs

from fusewright.graph.walk import is_constant
from fusewright.plan.plan import HEAVY_OPS, Group


def multiply_adds(group: Group, nodes: Mapping[str, gs.Node]) -> int:
    """Multiply-adds of the group's products; dimensions that are not known count as one."""
    return sum(_of_node(nodes[name]) for name in group.members if nodes[name].op in HEAVY_OPS)


def weight_elements(group: Group, nodes: Mapping[str, gs.Node]) -> int:
    """Elements of the group's quantized weights."""
    wanted = {group.parameters[name] for name in group.spec.weights if name in group.parameters}
    found = {
        tensor.name: prod(tensor.shape)
        for name in group.members
        for tensor in nodes[name].inputs
        if is_constant(tensor) and tensor.name in wanted
    }
    return sum(found.values())


def size(shape: object) -> int:
    """Elements of a shape; unknown dimensions count as one."""
    if not isinstance(shape, (list, tuple)):
        return 1
    return prod(d for d in shape if isinstance(d, int) and d > 0)


def _of_node(node: gs.Node) -> int:
    first, second = node.inputs[0], node.inputs[1]
    if node.op == "ConvTranspose":  # each element of the input meets the weights of its channel
        return size(first.shape) * size(second.shape[1:])
    if node.op == "Conv":
        return size(node.outputs[0].shape) * size(second.shape[1:])
    depth = _depth(node)
    if node.outputs[0].shape is not None:
        return size(node.outputs[0].shape) * depth
    # A rewrite left no shape: rows times depth, times columns.
    return max(size(first.shape), depth) * max(size(second.shape) // depth, 1)


def _depth(node: gs.Node) -> int:
    """Length of the sums of a MatMul or Gemm."""
    first, second = node.inputs[0].shape, node.inputs[1].shape
    if first:
        depth = first[0] if node.attrs.get("transA") else first[-1]
    else:
        depth = second[-2] if second and len(second) > 1 else 1
    return depth if isinstance(depth, int) and depth > 0 else 1
