"""Quantization that a file already has."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from fusewright.errors import ModelError
from fusewright.graph.load import Source, with_inner
from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE

_QUANTIZED = frozenset(
    {
        QUANTIZE,
        DEQUANTIZE,
        "ConvInteger",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
    }
)


def refuse_quantized(source: Source) -> None:
    """Refuses a model that is quantized already, in its graph, a branch or its functions.

    Raises:
        ModelError: naming the first quantized node.
    """
    inside = [node for function in source.proto.functions for node in function.node]
    for node in with_inner((*source.proto.graph.node, *inside)):
        if node.op_type in _QUANTIZED:
            name = node.name or node.output[0]
            raise ModelError(
                f"{source.path}: is quantized already ({node.op_type} '{name}'); start from the"
                " float model"
            )


def count_qdq(proto: onnx.ModelProto) -> int:
    """Number of Q and DQ nodes of a model, in its graph and its functions."""
    nodes = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    return sum(node.op_type in (QUANTIZE, DEQUANTIZE) for node in nodes)


def dequantized_reads(graph: gs.Graph) -> dict[str, frozenset[int]]:
    """Node → its input slots that read a DequantizeLinear; an unnamed node by its first output."""
    return {
        str(node.name or node.outputs[0].name): slots
        for node in graph.nodes
        if node.outputs
        and (
            slots := frozenset(
                i
                for i, tensor in enumerate(node.inputs)
                if any(p.op == DEQUANTIZE for p in tensor.inputs)
            )
        )
    }
