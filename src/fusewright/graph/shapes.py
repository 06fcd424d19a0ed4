"""Shapes and types of every tensor, inferred once, without touching the weights."""

from __future__ import annotations

import onnx
import onnx.shape_inference

from fusewright.graph.light import without_weights


def infer_shapes(proto: onnx.ModelProto) -> None:
    """Adds `value_info` for every tensor whose type can be inferred, in place."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(proto), data_prop=True)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(inferred.graph.value_info)
