"""What is stored quantized, as the float values that its DequantizeLinear gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.graph.walk import is_constant, peek, producer
from fusewright.quantize.blockwise.values import dequantized
from fusewright.target.formats import MXFP8_DEQUANTIZE


def stored(tensor: gs.Tensor) -> np.ndarray | None:
    """The values of an initializer, or of a Constant node; None of everything else."""
    if is_constant(tensor):
        # Four-bit values that were loaded could not be written any more.
        return peek(tensor)
    node = producer(tensor)
    value = node.attrs.get("value") if node is not None and node.op == "Constant" else None
    return None if value is None else np.asarray(value.values)


def clipped(values: np.ndarray, clip: gs.Node) -> np.ndarray | None:
    """Behind a Clip of stored bounds, as Brevitas has it; None where they are computed."""
    for tensor, bound in zip(clip.inputs[1:], (np.maximum, np.minimum), strict=False):
        if tensor.is_empty():
            continue
        limit = stored(tensor)
        if limit is None:
            return None
        values = bound(values, limit)
    return values


def float_values(node: gs.Node, quantized: np.ndarray) -> np.ndarray | None:
    """What a DequantizeLinear makes of stored values; None where its scale is computed.

    The product is exact in float64 for every type, and rounded once to the scale's.
    """
    scale = stored(node.inputs[1])
    zero = np.zeros((), np.int8) if len(node.inputs) < 3 else stored(node.inputs[2])
    if scale is None or zero is None:
        return None
    if node.op == MXFP8_DEQUANTIZE:
        axis = node.attrs.get("axis", -1)
        values = dequantized(np.moveaxis(quantized, axis, 0), np.moveaxis(scale, axis, 0))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(node.attrs.get("output_dtype", 1))
        return np.moveaxis(values, 0, axis).astype(dtype)
    axis, block = node.attrs.get("axis", 1), node.attrs.get("block_size", 0)
    wide, offset = scale.astype(np.float64), zero.astype(np.float64)
    if block:
        # The last block may be a part of one.
        rows = np.arange(quantized.shape[axis]) // block
        wide = np.take(wide, rows, axis)
        offset = np.take(offset, rows, axis) if zero.ndim else offset
    elif scale.size > 1 and scale.ndim == 1:
        shape = [1] * quantized.ndim
        shape[axis] = scale.size
        wide, offset = wide.reshape(shape), offset.reshape(shape) if zero.size > 1 else offset
    elif scale.size > 1:
        return None
    elif quantized.ndim < max(scale.ndim, zero.ndim):
        wide, offset = wide.reshape(()), offset.reshape(())
    result: np.ndarray = (quantized.astype(np.float64) - offset) * wide
    return result.astype(scale.dtype)
