"""Inserting Q/DQ pairs where the placement says, and taking them out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.edit import Names, bypass
from fusewright.graph.walk import peek
from fusewright.plan.plan import node_index
from fusewright.quantize.placement import Placement
from fusewright.quantize.weights import scale_of, weight_scale

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def insert_qdq(graph: gs.Graph, placement: Placement, thresholds: Mapping[str, float]) -> None:
    """Inserts every pair of `placement`, in place; the weights stay float in front of theirs.

    A weight as float → Q → DQ costs file size, not engine size, and keeps the original value:
    `strip_qdq` gives the float graph back, bit for bit.

    Args:
        thresholds: clipping threshold of each scale, in the tensor's own unit.
    """
    insert = _Inserter(graph)
    scales = {
        name: insert.constant(f"{name}_scale", scale_of(threshold))
        for name, threshold in thresholds.items()
    }
    for site in placement.activations:
        insert.pair(site.tensor, site.readers, scales[site.scale], None)
    for weight in placement.weights:
        values = peek(insert.tensors[weight.tensor])
        name = f"{weight.tensor}_scale"
        scale = insert.constant(name, weight_scale(values, weight.axis))
        insert.pair(weight.tensor, weight.readers, scale, weight.axis)
    graph.nodes = _in_front(graph.nodes, insert.pairs)


class _Inserter:
    def __init__(self, graph: gs.Graph) -> None:
        self.nodes = node_index(graph)
        self.tensors = graph.tensors()
        self.pairs: list[tuple[gs.Node, gs.Node]] = []
        self._names = Names(graph)
        self._zeros: dict[int, gs.Constant] = {}

    def constant(self, name: str, array: np.ndarray) -> gs.Constant:
        return gs.Constant(self._names.fresh(name), array)

    def pair(
        self,
        name: str,
        readers: Sequence[tuple[str, int]],
        scale: gs.Constant,
        axis: int | None,
    ) -> None:
        tensor, shape = self.tensors[name], self.tensors[name].shape
        attrs = {} if axis is None else {"axis": axis}
        zero = self._zero(scale.values.size if axis is not None else 0)
        quantized = gs.Variable(self._names.fresh(f"{name}_{QUANTIZE}_Output"), np.int8, shape)
        restored = gs.Variable(self._names.fresh(f"{name}_{DEQUANTIZE}_Output"), np.float32, shape)
        q_name, dq_name = (self._names.fresh(f"{name}_{op}") for op in (QUANTIZE, DEQUANTIZE))
        q = gs.Node(QUANTIZE, q_name, dict(attrs), [tensor, scale, zero], [quantized])
        dq = gs.Node(DEQUANTIZE, dq_name, dict(attrs), [quantized, scale, zero], [restored])
        for node, index in readers:
            self.nodes[node].inputs[index] = restored
        self.pairs.append((q, dq))

    def _zero(self, channels: int) -> gs.Constant:
        # One shared zero-point per length; it also says that the type is INT8.
        if channels not in self._zeros:
            shape = (channels,) if channels else ()
            name = f"fusewright_zero_point_{channels}" if channels else "fusewright_zero_point"
            self._zeros[channels] = self.constant(name, np.zeros(shape, np.int8))
        return self._zeros[channels]


def _in_front(nodes: Sequence[gs.Node], pairs: Sequence[tuple[gs.Node, gs.Node]]) -> list[gs.Node]:
    """The sorted node list with each pair right in front of the first node that reads it."""
    before: dict[int, list[gs.Node]] = {}
    position = {id(node): i for i, node in enumerate(nodes)}
    for q, dq in pairs:
        first = min(position[id(reader)] for reader in dq.outputs[0].outputs)
        before.setdefault(first, []).extend((q, dq))
    return [n for i, node in enumerate(nodes) for n in (*before.get(i, ()), node)]


def strip_qdq(graph: gs.Graph) -> list[str]:
    """Takes every INT8 Q/DQ pair out, in place; names the tensors that had one.

    A weight stored as INT8 becomes float again, with the values it was rounded to. Pairs inside
    local functions go too; a scale that a call handed over stays as an input that nothing reads.
    """
    found = _strip(graph)
    for function in graph.functions:
        found += [f"{function.name}/{name}" for name in _strip(function)]
    return found


def _strip(graph: gs.Graph) -> list[str]:
    found: list[str] = []
    for node in list(graph.nodes):
        if node.op != DEQUANTIZE or not node.inputs:
            continue
        source = _float_source(node)
        if source is None:
            continue
        found.append(source.name)
        if not bypass(graph, node, source):
            # The pair of another tool between an input, or a stored tensor, and an output.
            node.op, node.attrs, node.inputs = "Identity", {}, [source]
    graph.nodes = [n for n in graph.nodes if n.outputs and _is_used(n, graph)]
    return found


def _float_source(dequantize: gs.Node) -> gs.Tensor | None:
    quantized = dequantize.inputs[0]
    if quantized.inputs and quantized.inputs[0].op == QUANTIZE:
        return quantized.inputs[0].inputs[0]
    if isinstance(quantized, gs.Constant) and isinstance(dequantize.inputs[1], gs.Constant):
        values = _dequantized(dequantize)
        return None if values is None else gs.Constant(f"{quantized.name}_float", values)
    return None


def _dequantized(node: gs.Node) -> np.ndarray | None:
    quantized, scale = node.inputs[0].values, node.inputs[1].values
    if quantized.dtype not in (np.int8, np.uint8, np.int32):
        return None
    zero = node.inputs[2].values if len(node.inputs) > 2 else np.zeros((), quantized.dtype)
    if scale.ndim == 1:
        shape = [1] * quantized.ndim
        shape[node.attrs.get("axis", 1)] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.ndim else zero
    elif scale.ndim > 1:
        return None
    result: np.ndarray = (quantized.astype(np.int32) - zero.astype(np.int32)) * scale
    return result.astype(scale.dtype)


def _is_used(node: gs.Node, graph: gs.Graph) -> bool:
    if node.op != QUANTIZE:
        return True
    result = node.outputs[0]
    if result.outputs or any(t is result for t in graph.outputs):
        return True
    node.inputs.clear()
    return False
