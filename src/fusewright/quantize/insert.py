"""Inserting Q/DQ pairs where the placement says; `strip` takes them out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.errors import ModelError
from fusewright.graph.edit import Names, put_in_front
from fusewright.graph.walk import peek
from fusewright.plan.plan import node_index
from fusewright.quantize.placement import Placement, WeightSite
from fusewright.quantize.weights import scale_of, weight_scale
from fusewright.target import FORMATS, Format
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
    to `quantize.int4`, sites of a format in blocks to `quantize.blockwise`.

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
    scales: dict[str, gs.Constant] = {}
    for site in placement.activations:
        form = FORMATS[site.format]
        if form.block is not None:
            continue
        if site.scale not in scales:
            scale = scale_of(thresholds[site.scale], form)
            scales[site.scale] = insert.constant(f"{site.scale}_scale", scale)
        insert.pair(site.tensor, site.readers, _Grid(form, scales[site.scale]))
    for weight in placement.weights:
        form = FORMATS[weight.format]
        if not form.weights_only and form.block is None:
            insert.weight(weight)
    put_in_front(graph, insert.pairs)


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
