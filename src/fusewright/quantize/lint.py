"""The Q/DQ linter: what must hold of every quantized graph, whatever placed the pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.opset import INT8_OPSET as _OPSET
from fusewright.graph.walk import input_at, is_constant, producer, values
from fusewright.plan.demand import data_inputs
from fusewright.plan.plan import HEAVY_OPS
from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE

_PAIR = (QUANTIZE, DEQUANTIZE)


def lint(graph: gs.Graph) -> list[str]:
    """Violations, one line each, on a flat graph; an empty list is a clean bill."""
    return [
        *_scales(graph),
        *_one_pair_per_tensor(graph),
        *_types(graph),
        *_outputs(graph),
        *_weighted(graph),
        *_concat(graph),
        *_unweighted(graph),
    ]


def _is_dequantized(tensor: gs.Tensor) -> bool:
    node = producer(tensor)
    return node is not None and node.op == DEQUANTIZE


def _scales(graph: gs.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op not in _PAIR:
            continue
        scale, zero = node.inputs[1], input_at(node, 2)
        if not is_constant(scale) or not np.all(values(scale) > 0):
            yield f"{node.name}: a scale that is not positive"
        if zero is None or not is_constant(zero) or np.any(values(zero)) or zero.dtype != np.int8:
            yield f"{node.name}: a zero-point other than INT8 0"
        quantize = producer(node.inputs[0]) if node.op == DEQUANTIZE else None
        if quantize is not None and quantize.op == QUANTIZE and not _same_grid(quantize, node):
            yield f"{node.name}: another scale or axis than '{quantize.name}' in front of it"


def _same_grid(first: gs.Node, second: gs.Node) -> bool:
    one, other = first.inputs[1], second.inputs[1]
    if first.attrs.get("axis") != second.attrs.get("axis"):
        return False
    if one is other or not (is_constant(one) and is_constant(other)):
        return one is other
    return bool(np.array_equal(values(one), values(other)))


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
            sides = [_dequantizer(t) is not None for t in node.inputs[:2]]
            if any(sides) and not all(sides):
                yield f"{node.op} '{node.name}' has a pair on one of its two operands"
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is not None and _is_dequantized(bias):
                yield f"{node.op} '{node.name}' has a quantized bias"


def _concat(graph: gs.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op != "Concat":
            continue
        found = [_dequantizer(t) for t in node.inputs]
        made = [dq for dq in found if dq is not None]
        if made and len(made) < len(found):
            yield f"Concat '{node.name}' has a pair on some of its inputs only"
        elif made and not all(_same_grid(made[0], dq) for dq in made):
            yield f"Concat '{node.name}' has inputs of different scales"


def _unweighted(graph: gs.Graph) -> Iterator[str]:
    """An op without weights that reads INT8 only must write it: TensorRT fuses both or neither."""
    fixed = {id(t) for t in graph.outputs}
    for node in graph.nodes:
        if node.op in (*HEAVY_OPS, *_PAIR) or data_inputs(node, _OPSET):
            continue
        computed = [t for t in node.inputs if not is_constant(t) and not t.is_empty()]
        if not computed or not all(_is_int8(t) for t in computed):
            continue
        # The Act of Act → Add is judged with the Add.
        inside = len(computed) == 1 and _readers_take_two(node)
        if not inside and not all(_is_read_quantized(t, fixed) for t in node.outputs):
            yield f"{node.op} '{node.name}' reads INT8 and writes float, without weights"


def _is_int8(tensor: gs.Tensor) -> bool:
    """Whether a tensor is dequantized, or an Act away from it."""
    if _dequantizer(tensor) is not None:
        return True
    node = producer(tensor)
    if node is None or node.op in HEAVY_OPS:
        return False
    computed = [t for t in node.inputs if not is_constant(t) and not t.is_empty()]
    return len(computed) == 1 and _dequantizer(computed[0]) is not None


def _readers_take_two(node: gs.Node) -> bool:
    readers = [r for t in node.outputs for r in t.outputs]
    two = (sum(not is_constant(t) and not t.is_empty() for t in r.inputs) > 1 for r in readers)
    return bool(readers) and all(two)


def _is_read_quantized(tensor: gs.Tensor, fixed: set[int]) -> bool:
    if id(tensor) in fixed or not tensor.outputs:
        return False
    for reader in tensor.outputs:
        moves = any(t is tensor for t in data_inputs(reader, _OPSET))
        if reader.op != QUANTIZE and not (
            moves and all(_is_read_quantized(t, fixed) for t in reader.outputs if t.outputs)
        ):
            return False
    return True


def _dequantizer(tensor: gs.Tensor) -> gs.Node | None:
    """The DequantizeLinear behind a tensor, perhaps in front of ops that only move elements."""
    seen = 0
    while not _is_dequantized(tensor):
        node = producer(tensor)
        sources = () if node is None else data_inputs(node, _OPSET)
        if not sources or seen > 64:
            return None
        tensor, seen = sources[0], seen + 1
    return producer(tensor)
