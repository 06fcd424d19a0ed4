"""Outputs in half, compared in front of their last rounding."""

from __future__ import annotations

import onnx

_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def with_float_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, with the outputs that a last Cast makes half in float32.

    Two results that are equal but for the last bit of float32 can round to neighbours in half,
    which of a thousand outputs alone is 1e-5 of their norm.
    """
    read = {name for node in model.graph.node for name in node.input}
    outputs = {v.name: v.type.tensor_type for v in model.graph.output}
    last = [
        i
        for i, node in enumerate(model.graph.node)
        if node.op_type == "Cast"
        and (kind := outputs.get(node.output[0])) is not None
        and kind.elem_type in _HALF
        and node.output[0] not in read
    ]
    if not last:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = set()
    for i in last:
        node = copy.graph.node[i]
        names.add(node.output[0])
        for attribute in node.attribute:
            if attribute.name == "to":
                attribute.i = onnx.TensorProto.FLOAT
    for value in copy.graph.output:
        if value.name in names:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return copy
