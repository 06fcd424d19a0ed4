"""The Q/DQ linter: what must hold of every quantized graph, whatever placed the pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.opset import INT8_OPSET as _OPSET
from fusewright.graph.walk import is_constant, producer, values
from fusewright.plan.demand import data_inputs
from fusewright.plan.plan import HEAVY_OPS
from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE


def lint(graph: gs.Graph) -> list[str]:
    """Violations, one line each, on a flat graph; an empty list is a clean bill."""
    return [
        *_scales(graph),
        *_one_pair_per_tensor(graph),
        *_types(graph),
        *_outputs(graph),
        *_weighted(graph),
    ]


def _is_dequantized(tensor: gs.Tensor) -> bool:
    node = producer(tensor)
    return node is not None and node.op == DEQUANTIZE


def _scales(graph: gs.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op not in (QUANTIZE, DEQUANTIZE):
            continue
        scale, zero = node.inputs[1], node.inputs[2]
        if not is_constant(scale) or not np.all(values(scale) > 0):
            yield f"{node.name}: a scale that is not positive"
        if not is_constant(zero) or np.any(values(zero)) or zero.dtype != np.int8:
            yield f"{node.name}: a zero-point other than INT8 0"


def _one_pair_per_tensor(graph: gs.Graph) -> Iterator[str]:
    pairs: dict[tuple[str, object], list[str]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == QUANTIZE:
            pairs[node.inputs[0].name, node.attrs.get("axis")].append(node.name)
            if _is_dequantized(node.inputs[0]):
                yield f"{node.name}: quantizes what was quantized already"
    for (tensor, _), names in pairs.items():
        if len(names) > 1:
            yield f"tensor '{tensor}' has {len(names)} pairs"


def _types(graph: gs.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op == QUANTIZE:
            dtype = node.inputs[0].dtype
            if dtype is not None and np.dtype(dtype).kind != "f":
                yield f"{node.name}: quantizes a tensor of type {np.dtype(dtype)}"


def _outputs(graph: gs.Graph) -> Iterator[str]:
    for tensor in graph.outputs:
        if _is_dequantized(tensor):
            yield f"output '{tensor.name}' is quantized"


def _weighted(graph: gs.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op in HEAVY_OPS:
            sides = [_reads_int8(t) for t in node.inputs[:2]]
            if any(sides) and not all(sides):
                yield f"{node.op} '{node.name}' has a pair on one of its two operands"
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is not None and _is_dequantized(bias):
                yield f"{node.op} '{node.name}' has a quantized bias"


def _reads_int8(tensor: gs.Tensor) -> bool:
    """Whether a tensor is dequantized, perhaps in front of ops that only move elements."""
    seen = 0
    while not _is_dequantized(tensor):
        node = producer(tensor)
        sources = () if node is None else data_inputs(node, _OPSET)
        if not sources or seen > 64:
            return False
        tensor, seen = sources[0], seen + 1
    return True
