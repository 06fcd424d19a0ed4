"""A model with FP16 or BF16 tensors, in float32: every value it stores stays exactly what it is.

Quantizing, and deciding what can be half, start from float32; and onnxruntime's CPU has few kernels
for either type. Inputs and outputs keep their types, with a Cast on the inside.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
# Attributes that hold a number of `onnx.TensorProto`.
_TYPES = frozenset({"dtype", "output_dtype", "to"})


def holds_half(proto: onnx.ModelProto) -> bool:
    """Whether a model computes in FP16 or BF16, somewhere: by what it stores or casts to."""
    nodes = [n for graph in _graphs(proto.graph) for n in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    stored = {t.data_type for graph in _graphs(proto.graph) for t in graph.initializer}
    values = {v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)}
    return bool(HALF & (stored | values)) or any(_says_half(node) for node in nodes)


def widen(proto: onnx.ModelProto) -> None:
    """Makes a model float32, in place; it has its weights in it, and no local functions."""
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            _widen_tensor(tensor)
        for value in graph.value_info:
            _widen_type(value.type)
        for node in graph.node:
            _widen_node(node)
        if graph is not proto.graph:
            for value in (*graph.input, *graph.output):
                _widen_type(value.type)
    _keep_interface(proto.graph)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _says_half(node: onnx.NodeProto) -> bool:
    return any(
        (a.name in _TYPES and a.i in HALF) or (a.HasField("t") and a.t.data_type in HALF)
        for a in node.attribute
    )


def _widen_node(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _widen_tensor(attribute.t)
        if attribute.name in _TYPES and attribute.i in HALF:
            attribute.i = TensorProto.FLOAT


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in HALF:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _widen_type(kind: onnx.TypeProto) -> None:
    if kind.HasField("sequence_type"):
        _widen_type(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        _widen_type(kind.optional_type.elem_type)
    elif kind.tensor_type.elem_type in HALF:
        kind.tensor_type.elem_type = TensorProto.FLOAT


def _keep_interface(graph: onnx.GraphProto) -> None:
    """Casts behind inputs, and in front of outputs, that are half."""
    stored = {tensor.name for tensor in graph.initializer}
    fed = {v.name: v for v in graph.input if v.type.tensor_type.elem_type in HALF}
    fed = {name: value for name, value in fed.items() if name not in stored}
    given = {v.name: v for v in graph.output if v.type.tensor_type.elem_type in HALF}
    used = _names(graph)
    inside = {name: _fresh(f"{name}_float32", used) for name in dict.fromkeys((*fed, *given))}
    for tensor in [t for t in graph.initializer if t.name in given]:
        _keep_stored(graph, tensor, inside[tensor.name], given[tensor.name])
    for scope in _graphs(graph):
        for node in scope.node:
            node.input[:] = [inside.get(name, name) for name in node.input]
            node.output[:] = [inside.get(name, name) for name in node.output]
        if scope is not graph:
            for value in scope.output:
                value.name = inside.get(value.name, value.name)
    first = [_cast(name, inside[name], TensorProto.FLOAT, used) for name in fed]
    done = fed.keys() | stored
    kinds = {n: value.type.tensor_type.elem_type for n, value in given.items() if n not in done}
    last = [_cast(inside[name], name, kind, used) for name, kind in kinds.items()]
    nodes = [*first, *graph.node, *last]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _keep_stored(
    graph: onnx.GraphProto, tensor: TensorProto, name: str, value: onnx.ValueInfoProto
) -> None:
    """An output that is stored stays as it is; what reads it reads a float32 copy."""
    half = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    kept = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(half), tensor.name)
    tensor.name = name
    graph.initializer.append(kept)


def _cast(source: str, target: str, kind: int, used: set[str]) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], _fresh(f"{target}_Cast", used), to=kind)


def _names(graph: onnx.GraphProto) -> set[str]:
    """Names of tensors and nodes, those of bodies too."""
    nodes = [node for inner in _graphs(graph) for node in inner.node]
    stored = {tensor.name for inner in _graphs(graph) for tensor in inner.initializer}
    return stored | {name for node in nodes for name in (node.name, *node.input, *node.output)}


def _fresh(name: str, used: set[str]) -> str:
    while name in used:
        name += "_"
    used.add(name)
    return name
