"""Quantization that a file already has."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from fusewright.errors import ModelError
from fusewright.graph.load import Source, with_inner
from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE
from fusewright.target import Format, format_of

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


def dequantized_formats(graph: gs.Graph) -> dict[str, str]:
    """Node → the format of what it reads behind a DequantizeLinear, its weight's where it has one.

    Nodes go by the names of `dequantized_reads`; formats that are none of ours are left out.
    """
    found: dict[str, str] = {}
    for node in graph.nodes:
        for slot, tensor in enumerate(node.inputs):
            form = next((_format(p) for p in tensor.inputs if p.op == DEQUANTIZE), None)
            name = str(node.name or node.outputs[0].name) if node.outputs else ""
            if form is not None and (slot == 1 or name not in found):
                found[name] = form.name
    return found


def _format(dequantize: gs.Node) -> Format | None:
    # A pair says its type by the zero-point; stored four-bit weights by their own.
    told = [t.dtype for t in (*dequantize.inputs[2:], dequantize.inputs[0]) if t.dtype is not None]
    return format_of(told[0]) if told else None
