"""Inserting Q/DQ pairs where the placement says, and taking them out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.errors import ModelError
from fusewright.graph.edit import Names, bypass
from fusewright.graph.walk import is_constant, peek, producer
from fusewright.plan.plan import node_index
from fusewright.quantize.placement import Placement, WeightSite
from fusewright.quantize.weights import scale_of, weight_scale
from fusewright.target import FORMATS, Format, format_of
from fusewright.target.precision import INT8

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def insert_qdq(
    graph: gs.Graph,
    placement: Placement,
    thresholds: Mapping[str, float],
) -> None:
    """Inserts every pair of `placement`, in place; the weights stay float in front of theirs.

    A weight as float → Q → DQ costs file size, not engine size, and keeps the original value:
    `strip_qdq` gives the float graph back, bit for bit. Weights of a weights-only format are left
    alone: `quantize.int4` stores them.

    Args:
        thresholds: clipping threshold of each scale, in the tensor's own unit.

    Raises:
        ModelError: the graph's opset has no pairs of a format.
    """
    for name in {*placement.formats.values(), *(w.format for w in placement.weights)}:
        if int(graph.opset) < FORMATS[name].min_opset:
            raise ModelError(
                f"{FORMATS[name].title} needs opset {FORMATS[name].min_opset}, the graph has"
                f" {graph.opset}: name the precision or the plan when the model is prepared"
            )
    insert = _Inserter(graph)
    formats = placement.formats
    scales = {
        name: insert.constant(f"{name}_scale", scale_of(threshold, FORMATS[formats[name]]))
        for name, threshold in thresholds.items()
    }
    for site in placement.activations:
        insert.pair(site.tensor, site.readers, _Grid(FORMATS[site.format], scales[site.scale]))
    for weight in placement.weights:
        if not FORMATS[weight.format].weights_only:
            insert.weight(weight)
    graph.nodes = _in_front(graph.nodes, insert.pairs)


@dataclass(frozen=True)
class _Grid:
    """What a pair rounds to."""

    form: Format
    scale: gs.Constant
    axis: int | None = None


class _Inserter:
    def __init__(self, graph: gs.Graph) -> None:
        self.nodes = node_index(graph)
        self.tensors = graph.tensors()
        self.pairs: list[tuple[gs.Node, gs.Node]] = []
        self._names = Names(graph)
        self._zeros: dict[tuple[str, int], gs.Constant] = {}

    def constant(self, name: str, array: np.ndarray) -> gs.Constant:
        return gs.Constant(self._names.fresh(name), array)

    def weight(self, site: WeightSite) -> None:
        form = FORMATS[site.format]
        scale = weight_scale(peek(self.tensors[site.tensor]), site.axis, form)
        named = self.constant(f"{site.tensor}_scale", scale)
        self.pair(site.tensor, site.readers, _Grid(form, named, site.axis))

    def pair(self, name: str, readers: Sequence[tuple[str, int]], grid: _Grid) -> None:
        tensor, shape = self.tensors[name], self.tensors[name].shape
        attrs = {} if grid.axis is None else {"axis": grid.axis}
        zero = self._zero(grid.form, grid.scale.values.size if grid.axis is not None else 0)
        quantized = gs.Variable(
            self._names.fresh(f"{name}_{QUANTIZE}_Output"), grid.form.dtype, shape
        )
        restored = gs.Variable(self._names.fresh(f"{name}_{DEQUANTIZE}_Output"), np.float32, shape)
        q_name, dq_name = (self._names.fresh(f"{name}_{op}") for op in (QUANTIZE, DEQUANTIZE))
        q = gs.Node(QUANTIZE, q_name, dict(attrs), [tensor, grid.scale, zero], [quantized])
        dq = gs.Node(DEQUANTIZE, dq_name, dict(attrs), [quantized, grid.scale, zero], [restored])
        for node, index in readers:
            self.nodes[node].inputs[index] = restored
        self.pairs.append((q, dq))

    def _zero(self, form: Format, channels: int) -> gs.Constant:
        # One shared zero-point per length; it also says what the type is.
        key = (form.name, channels)
        if key not in self._zeros:
            shape = (channels,) if channels else ()
            kind = "" if form.name == INT8 else f"_{form.name}"
            name = f"fusewright_zero_point{kind}" + (f"_{channels}" if channels else "")
            self._zeros[key] = self.constant(name, np.zeros(shape, form.dtype))
        return self._zeros[key]


def _in_front(nodes: Sequence[gs.Node], pairs: Sequence[tuple[gs.Node, gs.Node]]) -> list[gs.Node]:
    """The sorted node list with each pair right in front of the first node that reads it."""
    before: dict[int, list[gs.Node]] = {}
    position = {id(node): i for i, node in enumerate(nodes)}
    for q, dq in pairs:
        first = min(position[id(reader)] for reader in dq.outputs[0].outputs)
        before.setdefault(first, []).extend((q, dq))
    return [n for i, node in enumerate(nodes) for n in (*before.get(i, ()), node)]


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
        if node.op != DEQUANTIZE or not node.inputs:
            continue
        source = _float_source(node)
        if source is None:
            continue
        found.append(source.name)
        if _changes_type(node):
            # Float32 on one side of the pair and half on the other: a Cast does what is left.
            node.op, node.attrs, node.inputs = "CastLike", {}, [source, node.inputs[1]]
        elif not bypass(graph, node, source):
            # The pair of another tool between an input, or a stored tensor, and an output.
            node.op, node.attrs, node.inputs = "Identity", {}, [source]
    graph.nodes = [n for n in graph.nodes if n.outputs and _is_used(n, graph)]
    return found


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
    if quantized.inputs and quantized.inputs[0].op == QUANTIZE:
        return quantized.inputs[0].inputs[0]
    if isinstance(quantized, gs.Constant) and isinstance(dequantize.inputs[1], gs.Constant):
        values = _dequantized(dequantize)
        return None if values is None else gs.Constant(f"{quantized.name}_float", values)
    return None


def _dequantized(node: gs.Node) -> np.ndarray | None:
    # Four-bit values that were loaded could not be written any more.
    quantized, scale = peek(node.inputs[0]), peek(node.inputs[1])
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
    if node.op != QUANTIZE:
        return True
    result = node.outputs[0]
    if result.outputs or any(t is result for t in graph.outputs):
        return True
    node.inputs.clear()
    return False
