"""A proto without its large weights, for passes that read structure only.

onnx's shape inference and version converter copy the whole model across to C++ and back; with the
weights declared instead of stored that costs milliseconds, and the 2 GB limit is out of reach.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx
import onnx.helper

_SMALL = 1024
_FEW = 16
_ITEM_BITS = {
    kind: 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    for kind in onnx.helper.get_all_tensor_dtypes()
}
# ml_dtypes gives each value a byte; ONNX packs them.
_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_ITEM_BITS |= {
    number: _PACKED[name] for name, number in onnx.TensorProto.DataType.items() if name in _PACKED
}


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which each initializer over 1 KB is a declared input (values are not copied)."""
    light = onnx.ModelProto(ir_version=proto.ir_version, producer_name=proto.producer_name)
    light.producer_version = proto.producer_version
    light.opset_import.extend(proto.opset_import)
    graph = light.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    for tensor in proto.graph.initializer:
        if is_heavy(tensor):
            declared = onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, tensor.dims
            )
            graph.input.append(declared)
        else:
            graph.initializer.append(tensor)
    return light


def with_weights(
    light: onnx.ModelProto, proto: onnx.ModelProto, wanted: Collection[str] | None = None
) -> onnx.ModelProto:
    """Puts the large weights of `proto`, or those named, back into a light copy, in place."""
    heavy = [t for t in proto.graph.initializer if is_heavy(t)]
    heavy = [t for t in heavy if wanted is None or t.name in wanted]
    names = {t.name for t in heavy}
    inputs = [v for v in light.graph.input if v.name not in names]
    del light.graph.input[:]
    light.graph.input.extend(inputs)
    light.graph.initializer.extend(heavy)
    return light


def is_heavy(tensor: onnx.TensorProto) -> bool:
    """Whether a stored tensor is left out of a light copy."""
    return byte_size(tensor) > _SMALL or tensor.data_location == onnx.TensorProto.EXTERNAL


def byte_size(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values, by its shape and type: protobuf's own count serializes them."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    return -(-math.prod(tensor.dims) * _ITEM_BITS.get(tensor.data_type, 64) // 8)


def stored_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the values that the proto itself holds in its graph."""
    here = (t for t in proto.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL)
    return sum(map(byte_size, here))


def all_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of all stored values of its graph, those in other files as well."""
    return sum(map(byte_size, proto.graph.initializer))


def is_small_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor lies in another file although it may be a shape, scales or pads."""
    few = math.prod(tensor.dims) <= _FEW
    return few and tensor.data_location == onnx.TensorProto.EXTERNAL
