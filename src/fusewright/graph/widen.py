"""A model with tensors in FP16, BF16 or FP64, in float32.

Quantizing, and deciding what can be half, start from float32; and onnxruntime's CPU has few kernels
for the other types. Of FP16 and BF16 every stored value stays exactly what it is; FP64 is rounded.
Inputs and outputs keep their types, with a Cast on the inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
DOUBLE = frozenset({TensorProto.DOUBLE})
Kinds = frozenset[int]
# Attributes that hold a number of `onnx.TensorProto`.
_TYPES = frozenset({"dtype", "output_dtype", "to"})


def holds_half(proto: onnx.ModelProto) -> bool:
    """Whether a model computes in FP16 or BF16, somewhere: by what it stores or casts to."""
    return _holds(proto, HALF)


def holds_double(proto: onnx.ModelProto) -> bool:
    """Whether a model has FP64 tensors, somewhere: by what it stores, takes, gives or casts to."""
    return _holds(proto, DOUBLE)


def _holds(proto: onnx.ModelProto, kinds: Kinds) -> bool:
    nodes = [n for graph in graphs_of(proto.graph) for n in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    stored = {t.data_type for graph in graphs_of(proto.graph) for t in graph.initializer}
    values = {v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)}
    return bool(kinds & (stored | values)) or any(says(node, kinds) for node in nodes)


def widen(proto: onnx.ModelProto) -> None:
    """Makes FP16 and BF16 float32, in place; it has its weights in it, and no local functions."""
    _to_float32(proto, HALF)


def narrow(proto: onnx.ModelProto) -> None:
    """Makes FP64 float32, in place, as `widen`; what is beyond float32 becomes its largest."""
    _to_float32(proto, DOUBLE)


def _to_float32(proto: onnx.ModelProto, kinds: Kinds) -> None:
    given = {v.name for v in proto.graph.output}
    kept = [
        TensorProto.FromString(tensor.SerializeToString())
        for tensor in proto.graph.initializer
        if tensor.name in given and tensor.data_type in kinds
    ]
    for graph in graphs_of(proto.graph):
        for tensor in graph.initializer:
            _convert_tensor(tensor, kinds)
        for value in graph.value_info:
            _convert_type(value.type, kinds)
        for node in graph.node:
            _convert_node(node, kinds)
        if graph is not proto.graph:
            for value in (*graph.input, *graph.output):
                _convert_type(value.type, kinds)
    _keep_interface(proto.graph, kinds, kept)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs_of(inner)


def says(node: onnx.NodeProto, kinds: Kinds) -> bool:
    """Whether a node holds a tensor of one of these types, or names one for its result."""
    return any(
        (a.name in _TYPES and a.i in kinds) or (a.HasField("t") and a.t.data_type in kinds)
        for a in node.attribute
    )


def _convert_node(node: onnx.NodeProto, kinds: Kinds) -> None:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _convert_tensor(attribute.t, kinds)
        if attribute.HasField("tp"):
            _convert_type(attribute.tp, kinds)
        if attribute.name in _TYPES and attribute.i in kinds:
            attribute.i = TensorProto.FLOAT


def _convert_tensor(tensor: TensorProto, kinds: Kinds) -> None:
    if tensor.data_type in kinds:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type in DOUBLE:
            # Masks hold the lowest float64, which would become -Inf, and NaN behind a product.
            most = np.finfo(np.float32).max
            values = np.where(np.isinf(values), values, np.clip(values, -most, most))
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def _convert_type(kind: onnx.TypeProto, kinds: Kinds) -> None:
    if kind.HasField("sequence_type"):
        _convert_type(kind.sequence_type.elem_type, kinds)
    elif kind.HasField("optional_type"):
        _convert_type(kind.optional_type.elem_type, kinds)
    elif kind.tensor_type.elem_type in kinds:
        kind.tensor_type.elem_type = TensorProto.FLOAT


def _keep_interface(graph: onnx.GraphProto, kinds: Kinds, kept: Sequence[TensorProto]) -> None:
    """Casts behind inputs, and in front of outputs, of these types."""
    stored = {tensor.name for tensor in graph.initializer}
    fed = {v.name: v for v in graph.input if v.type.tensor_type.elem_type in kinds}
    fed = {name: value for name, value in fed.items() if name not in stored}
    given = {v.name: v for v in graph.output if v.type.tensor_type.elem_type in kinds}
    used = _names(graph)
    inside = {name: _fresh(f"{name}_float32", used) for name in dict.fromkeys((*fed, *given))}
    # An output that is stored stays as it is; what reads it reads a float32 copy.
    for tensor in graph.initializer:
        tensor.name = inside.get(tensor.name, tensor.name)
    graph.initializer.extend(tensor for tensor in kept if tensor.name in inside)
    for scope in graphs_of(graph):
        for node in scope.node:
            node.input[:] = [inside.get(name, name) for name in node.input]
            node.output[:] = [inside.get(name, name) for name in node.output]
        if scope is not graph:
            for value in scope.output:
                value.name = inside.get(value.name, value.name)
    first = [_cast(name, inside[name], TensorProto.FLOAT, used) for name in fed]
    done = fed.keys() | stored
    types = {n: value.type.tensor_type.elem_type for n, value in given.items() if n not in done}
    last = [_cast(inside[name], name, kind, used) for name, kind in types.items()]
    nodes = [*first, *graph.node, *last]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _cast(source: str, target: str, kind: int, used: set[str]) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], _fresh(f"{target}_Cast", used), to=kind)


def _names(graph: onnx.GraphProto) -> set[str]:
    """Names of tensors and nodes, those of bodies too."""
    nodes = [node for inner in graphs_of(graph) for node in inner.node]
    stored = {tensor.name for inner in graphs_of(graph) for tensor in inner.initializer}
    return stored | {name for node in nodes for name in (node.name, *node.input, *node.output)}


def _fresh(name: str, used: set[str]) -> str:
    while name in used:
        name += "_"
    used.add(name)
    return name
