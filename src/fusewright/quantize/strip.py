"""Taking Q/DQ pairs out of a graph, whoever put them in."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import onnx_type
from fusewright.graph.edit import bypass
from fusewright.graph.walk import is_constant, peek, producer
from fusewright.quantize.blockwise.values import dequantized
from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE
from fusewright.target import format_of
from fusewright.target.formats import MXFP8_DEQUANTIZE, MXFP8_QUANTIZE, NVFP4_QUANTIZE

QUANTIZERS = frozenset({QUANTIZE, NVFP4_QUANTIZE, MXFP8_QUANTIZE})
DEQUANTIZERS = frozenset({DEQUANTIZE, MXFP8_DEQUANTIZE})


def strip_qdq(graph: gs.Graph) -> list[str]:
    """Takes every Q/DQ pair out, in place; names the tensors that had one.

    A weight stored quantized becomes float again, with the values it was rounded to. Pairs inside
    local functions go too; a scale that a call handed over stays as an input that nothing reads.
    """
    found = _strip(graph)
    for function in graph.functions:
        found += [f"{function.name}/{name}" for name in _strip(function)]
    return found


def _strip(graph: gs.Graph) -> list[str]:
    found: list[str] = []
    for node in list(graph.nodes):
        if node.op not in DEQUANTIZERS or not node.inputs:
            continue
        source = _float_source(node)
        if source is None:
            continue
        found.append(source.name)
        to, node.domain = _cast_to(node, source), None
        if to is not None:
            node.op, node.attrs, node.inputs = "Cast", {"to": to}, [source]
        elif _changes_type(node):
            # Float32 on one side of the pair and half on the other: a Cast does what is left.
            node.op, node.attrs, node.inputs = "CastLike", {}, [source, node.inputs[1]]
        elif not bypass(graph, node, source):
            # The pair of another tool between an input, or a stored tensor, and an output.
            node.op, node.attrs, node.inputs = "Identity", {}, [source]
    used = [n for n in reversed(graph.nodes) if n.outputs and _is_used(n, graph)]
    graph.nodes = used[::-1]
    return found


def _cast_to(dequantize: gs.Node, source: gs.Tensor) -> int | None:
    """The type that a pair of blocks restores to, where what it quantizes has another.

    ModelOpt restores MXFP8 to half whatever comes in, and NVFP4 to the float32 of its scale.
    """
    maker = producer(dequantize.inputs[0])
    if maker is None or maker.op not in (NVFP4_QUANTIZE, MXFP8_QUANTIZE) or source.dtype is None:
        return None
    before = onnx_type(source.dtype)
    if maker.op == MXFP8_QUANTIZE:
        after = int(dequantize.attrs.get("output_dtype", onnx.TensorProto.FLOAT))
    else:
        after = onnx_type(maker.inputs[1].dtype)
    return None if before == after else after


def _changes_type(dequantize: gs.Node) -> bool:
    """Whether a pair's scales say that the type behind it is another than in front of it."""
    quantize = producer(dequantize.inputs[0])
    if quantize is None or quantize.op != QUANTIZE:
        return False
    one, other = quantize.inputs[1], dequantize.inputs[1]
    if is_constant(one) and is_constant(other):
        return bool(one.dtype != other.dtype)
    return one is not other  # inputs of a local function, one for each type


def _float_source(dequantize: gs.Node) -> gs.Tensor | None:
    quantized = dequantize.inputs[0]
    maker = producer(quantized)
    if maker is not None and maker.op in QUANTIZERS and maker.outputs[0] is quantized:
        return maker.inputs[0]
    if isinstance(quantized, gs.Constant) and isinstance(dequantize.inputs[1], gs.Constant):
        values = _dequantized(dequantize)
        return None if values is None else gs.Constant(f"{quantized.name}_float", values)
    return None


def _dequantized(node: gs.Node) -> np.ndarray | None:
    # Four-bit values that were loaded could not be written any more.
    quantized, scale = peek(node.inputs[0]), peek(node.inputs[1])
    if node.op == MXFP8_DEQUANTIZE:
        axis = node.attrs.get("axis", -1)
        values = dequantized(np.moveaxis(quantized, axis, 0), np.moveaxis(scale, axis, 0))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(node.attrs.get("output_dtype", 1))
        return np.moveaxis(values, 0, axis).astype(dtype)
    form = format_of(quantized.dtype)
    if form is None and quantized.dtype not in (np.uint8, np.int32):
        return None
    axis, block = node.attrs.get("axis", 1), node.attrs.get("block_size", 0)
    wide = np.int32 if form is None or quantized.dtype.kind == "i" else np.float32
    steps = quantized.astype(wide)
    zero = peek(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), quantized.dtype)
    zero = zero.astype(wide)
    if block:
        # The last block may be a part of one.
        rows = np.arange(quantized.shape[axis]) // block
        scale = np.take(scale, rows, axis)
        zero = np.take(zero, rows, axis) if zero.ndim else zero
    elif scale.ndim == 1:
        shape = [1] * quantized.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.ndim else zero
    elif scale.ndim > 1:
        return None
    result: np.ndarray = (steps - zero) * scale
    return result.astype(scale.dtype)


def _is_used(node: gs.Node, graph: gs.Graph) -> bool:
    if node.op not in QUANTIZERS | DEQUANTIZERS:
        return True
    if any(t.outputs or any(t is result for result in graph.outputs) for t in node.outputs):
        return True
    node.inputs.clear()
    return False
