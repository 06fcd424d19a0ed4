"""float16 models keep their type through onnxruntime's optimizer.

onnxruntime's CPU kernels mostly lack float16, so that it casts to float32 around them, whatever the
optimization level, and writes those Casts to the file: TensorRT would run the model in float32.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper

from fusewright.graph.shapes import infer_shapes

_PREFIX = "InsertedPrecisionFreeCast_"
_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def remove_inserted_casts(proto: onnx.ModelProto) -> None:
    """Takes the Casts that onnxruntime put around float16 kernels out again, in place.

    Where it merged one of them with a Cast of the model's own, that one is put back.
    """
    graph = proto.graph
    names, kept = _sort_out(graph)
    if not names and not any(_is_inserted(name) for node in kept for name in node.output):
        return
    infer_shapes(proto)
    float32 = _computed_in_float32(graph)
    nodes: list[onnx.NodeProto] = []
    restored: set[str] = set()

    def cast(source: str, target: str, kind: int) -> str:
        if target not in restored:
            restored.add(target)
            nodes.append(onnx.helper.make_node("Cast", [source], [target], target, to=kind))
        return target

    for node in kept:
        was_half = any(map(_is_inserted, node.output))
        for i, name in enumerate(node.input):
            bare = names.get(name, name.removeprefix(_PREFIX))
            if _is_inserted(name) and not was_half and node.op_type != "Cast":
                node.input[i] = cast(bare, name, onnx.TensorProto.FLOAT)
            elif was_half and name in float32:
                node.input[i] = cast(name, f"{name}_half", onnx.TensorProto.FLOAT16)
            else:
                node.input[i] = bare
        for i, name in enumerate(node.output):
            node.output[i] = names.get(name, name.removeprefix(_PREFIX))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    # The types of before: what an inserted Cast stood behind was float32.
    del graph.value_info[:]
    infer_shapes(proto)


def _computed_in_float32(graph: onnx.GraphProto) -> set[str]:
    declared = (*graph.input, *graph.value_info)
    return {
        v.name
        for v in declared
        if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and not _is_inserted(v.name)
    }


def _sort_out(graph: onnx.GraphProto) -> tuple[dict[str, str], list[onnx.NodeProto]]:
    """The model's own name for each tensor behind or in front of an inserted Cast; the rest."""
    names: dict[str, str] = {}
    kept = []
    for node in graph.node:
        to = next((a.i for a in node.attribute if a.name == "to"), None)
        if node.op_type == "Cast" and _is_inserted(node.output[0]):
            names[node.output[0]] = node.input[0]
        elif node.op_type == "Cast" and to in _HALF and _is_inserted(node.input[0]):
            names[node.input[0]] = node.output[0]
        else:
            kept.append(node)
    return names, kept


def _is_inserted(name: str) -> bool:
    return name.startswith(_PREFIX)


def holds_bfloat16(proto: onnx.ModelProto) -> bool:
    """Whether a model has BF16 tensors, for which onnxruntime's CPU lacks most kernels."""
    stored = {tensor.data_type for tensor in proto.graph.initializer}
    declared = {
        v.type.tensor_type.elem_type
        for v in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    }
    return onnx.TensorProto.BFLOAT16 in stored | declared


def widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with float32 for BF16 throughout: the same operators, to be looked at, not run.

    Args:
        proto: with its weights, and without local functions.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    for tensor in graph.initializer:
        _widen(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            if attribute.name in ("to", "dtype") and attribute.i == onnx.TensorProto.BFLOAT16:
                attribute.i = onnx.TensorProto.FLOAT
    return copy


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
