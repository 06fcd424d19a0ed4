"""Quantization that a file already has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.errors import ModelError
from fusewright.graph.dtypes import onnx_type
from fusewright.graph.load import Source, with_inner
from fusewright.graph.walk import passes_on
from fusewright.quantize.strip import DEQUANTIZERS, QUANTIZERS
from fusewright.target import format_of
from fusewright.target.formats import MXFP8_DEQUANTIZE, NVFP4_QUANTIZE
from fusewright.target.precision import MXFP8, NVFP4

_QUANTIZED = (
    QUANTIZERS
    | DEQUANTIZERS
    | {
        "ConvInteger",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
    }
)
# Of onnxruntime's own domain.
_FUSED = frozenset(
    {
        "QAttention",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
    }
)


def refuse_quantized(source: Source) -> None:
    """Refuses a model that is quantized already, in its graph, a branch or its functions.

    Raises:
        ModelError: naming the first quantized node.
    """
    inside = [node for function in source.proto.functions for node in function.node]
    for node in with_inner((*source.proto.graph.node, *inside)):
        if node.op_type in _QUANTIZED | _FUSED:
            name = node.name or node.output[0]
            raise ModelError(
                f"{source.path}: is quantized already ({node.op_type} '{name}'); start from the"
                " float model"
            )


def left_quantized(proto: onnx.ModelProto) -> str | None:
    """A node that computes in integers, else a pair that cannot be taken out, if there is one."""
    inside = [node for function in proto.functions for node in function.node]
    left = [n for n in with_inner((*proto.graph.node, *inside)) if n.op_type in _QUANTIZED | _FUSED]
    if not left:
        return None
    # The pairs around an operator of integers stay because that does.
    node = min(left, key=lambda node: node.op_type in QUANTIZERS | DEQUANTIZERS)
    return f"{node.op_type} '{node.name or node.output[0]}'"


def count_qdq(proto: onnx.ModelProto) -> int:
    """Number of Q and DQ nodes of a model, in its graph and its functions."""
    nodes = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    return sum(node.op_type in QUANTIZERS | DEQUANTIZERS for node in nodes)


def dequantized_reads(graph: gs.Graph) -> dict[str, dict[int, str]]:
    """Node → input slot → type of the values it reads there behind a DequantizeLinear.

    The type is the name of a format where it is one of ours, else ONNX's own, such as `uint8`; an
    unnamed node goes by its first output.
    """
    found: dict[str, dict[int, str]] = {}
    for node in graph.nodes:
        for slot, tensor in enumerate(node.inputs if node.outputs else ()):
            pair = _pair_of(tensor)
            if pair is not None:
                found.setdefault(str(node.name or node.outputs[0].name), {})[slot] = _type(pair)
    return found


def _pair_of(tensor: gs.Tensor) -> gs.Node | None:
    """The DequantizeLinear behind a tensor; ModelOpt has Casts, and turns weights, behind it.

    A Sum of one input may stand there too, see `quantize.fence`.
    """
    node = next(iter(tensor.inputs), None)
    while node is not None and (node.op in ("Cast", "Transpose") or passes_on(node)):
        node = next(iter(node.inputs[0].inputs), None)
    return node if node is not None and node.op in DEQUANTIZERS else None


def _type(dequantize: gs.Node) -> str:
    if dequantize.op == MXFP8_DEQUANTIZE:
        return MXFP8
    if any(node.op == NVFP4_QUANTIZE for node in dequantize.inputs[0].inputs):
        return NVFP4
    # A pair says its type by the zero-point; stored four-bit weights by their own.
    said = (_dtype(tensor) for tensor in (*dequantize.inputs[2:], dequantize.inputs[0]))
    told = next((dtype for dtype in said if dtype is not None), np.uint8)  # ONNX's default
    known = format_of(told)
    if known is not None:
        return known.name
    return onnx.TensorProto.DataType.Name(onnx_type(told)).lower()


def _dtype(tensor: gs.Tensor) -> Any:
    """A type as graphsurgeon has it; of a constant in a function's body, that of its values."""
    inside = next((node.attrs["value"] for node in tensor.inputs if "value" in node.attrs), None)
    return getattr(inside, "dtype", None) if tensor.dtype is None else tensor.dtype
