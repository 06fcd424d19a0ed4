"""Whether a model computes in FP64 on what it is fed, as exporters from NumPy write it.

TensorRT reads FP64 as FP32 wherever it stands: there, so can we. What is computed of integers alone
(sizes, positions) and what is stored and cast once, stays as the file has it.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.shape_inference
from onnx import TensorProto

from fusewright.graph.light import without_weights
from fusewright.graph.shapes import infer_shapes
from fusewright.graph.widen import DOUBLE, HALF, graphs_of, holds_double, says

_FLOATS = HALF | DOUBLE | {TensorProto.FLOAT}


def computes_in_double(proto: onnx.ModelProto) -> bool:
    """Whether some operator but Cast takes, or gives, FP64 that comes of floats fed to the model.

    Args:
        proto: without local functions; its weights are not read.
    """
    if not holds_double(proto):
        return False
    light = without_weights(proto)
    try:
        infer_shapes(light)
    except onnx.shape_inference.InferenceError:
        return True  # proof decides
    graph = light.graph
    kinds = _kinds(graph)
    fed = {v.name for v in proto.graph.input if kinds.get(v.name) in _FLOATS}
    fed -= {tensor.name for tensor in proto.graph.initializer}
    before = -1
    while len(fed) > before:  # once more where nodes are not in order
        before = len(fed)
        for node in graph.node:
            if not fed.isdisjoint(_reads(node)):
                fed.update(n for n in node.output if kinds.get(n, TensorProto.FLOAT) in _FLOATS)
    wide = {name for name in fed if kinds.get(name) in DOUBLE}
    return any(_works_on(node, wide, fed) for node in graph.node)


def _works_on(node: onnx.NodeProto, wide: set[str], fed: set[str]) -> bool:
    bodies = list(_bodies(node))
    if bodies and not fed.isdisjoint(_reads(node)):
        inner = [n for body in bodies for n in body.node]
        stored = {t.data_type for body in bodies for t in body.initializer}
        if DOUBLE & stored or any(says(n, DOUBLE) for n in inner):
            return True
    return node.op_type != "Cast" and not wide.isdisjoint((*_reads(node), *node.output))


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for body in _bodies(node):
        for inner in body.node:
            yield from inner.input


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from graphs_of(graph)


def _kinds(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.value_info, *graph.output, *graph.input)
    kinds = {v.name: v.type.tensor_type.elem_type for v in values}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: kind for name, kind in kinds.items() if kind}
