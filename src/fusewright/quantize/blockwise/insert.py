"""NVFP4 and MXFP8 in the graph, in the operators that TensorRT's parser knows them by.

A block's scale is found from the values at run time, which ONNX has no operator for, and TensorRT
reads no E8M0 tensor; so there are operators of the domain `trt`, as ModelOpt writes them too:

    NVFP4: x → TRT_FP4DynamicQuantize(scale) → codes, scales
           scales → DequantizeLinear(scale) → DequantizeLinear(codes, ·, block of 16)
    MXFP8: x → TRT_MXFP8DynamicQuantize → codes, exponents → TRT_MXFP8DequantizeLinear

Stored weights have codes and scales in front of the same DequantizeLinears.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from fusewright.graph.dtypes import numpy_type, onnx_type
from fusewright.graph.edit import Names, put_in_front
from fusewright.graph.walk import peek
from fusewright.plan.plan import node_index
from fusewright.quantize.blockwise.values import WEIGHT_REACHES, global_scale, to_blocks
from fusewright.quantize.insert import DEQUANTIZE
from fusewright.quantize.placement import Placement
from fusewright.target import FORMATS, Format
from fusewright.target.formats import (
    MXFP8_DEQUANTIZE,
    MXFP8_QUANTIZE,
    NVFP4_QUANTIZE,
    TRT_DOMAIN,
)
from fusewright.target.precision import NVFP4

_FP8, _E8M0 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e8m0fnu)
_FP8_TYPE = onnx.TensorProto.FLOAT8E4M3FN
_IR = 11
# Of what TensorRT quantizes in blocks; another rank is reshaped to rows around it.
_RANKS = (2, 3)
_Readers = Sequence[tuple[gs.Node, int]]


def insert_blocks(graph: gs.Graph, placement: Placement, thresholds: Mapping[str, float]) -> None:
    """Puts the sites of block formats into a graph whose float tensors have their last types.

    In place. A weight is rounded from what its readers read now, and stored in the format.

    Args:
        graph: flat; `insert_qdq` has put the pairs of other formats in.
        placement: what goes where; sites of other formats are passed over.
        thresholds: largest magnitude of each scale that was observed.
    """
    insert = _Inserter(graph)
    for site in placement.activations:
        form = FORMATS[site.format]
        if form.block is not None:
            for tensor, readers in insert.read(site.readers):
                insert.activation(tensor, readers, form, thresholds.get(site.scale, 0.0))
    for weight in placement.weights:
        form = FORMATS[weight.format]
        if form.block is not None:
            for tensor, readers in insert.read(weight.readers):
                insert.weight(tensor, readers, form)
    insert.close()


@dataclass(frozen=True)
class _Quantized:
    """Codes and block scales along an axis; `scale` is NVFP4's of the whole tensor."""

    form: Format
    axis: int
    codes: gs.Tensor
    scales: gs.Tensor
    scale: gs.Constant | None


class _Inserter:
    def __init__(self, graph: gs.Graph) -> None:
        self._graph, self._names, self._nodes = graph, Names(graph), node_index(graph)
        self._runs: list[list[gs.Node]] = []
        self._new: list[gs.Node] = []

    def read(self, slots: Sequence[tuple[str, int]]) -> list[tuple[gs.Tensor, _Readers]]:
        """What the slots read now: one tensor, or it and its Cast."""
        found: dict[int, tuple[gs.Tensor, list[tuple[gs.Node, int]]]] = {}
        for name, slot in slots:
            tensor = self._nodes[name].inputs[slot]
            found.setdefault(id(tensor), (tensor, []))[1].append((self._nodes[name], slot))
        return list(found.values())

    def activation(
        self, tensor: gs.Tensor, readers: _Readers, form: Format, threshold: float
    ) -> None:
        features = int(readers[0][0].inputs[1].shape[0])
        source = tensor
        shape: Sequence[object] = tensor.shape or ()
        if len(shape) not in _RANKS or not isinstance(shape[-1], int):
            source = self._reshaped(tensor, "rows", [*_rows(shape), features])
        name, inputs, scale = source.name, [source], None
        attrs = {"axis": -1, "block_size": form.block}
        if form.name == NVFP4:
            scale = self._constant(
                f"{name}_scale", global_scale(threshold, numpy_type(tensor.dtype))
            )
            inputs.append(scale)
            attrs["scale_type"], op, kind = _FP8_TYPE, NVFP4_QUANTIZE, _FP8
        else:
            attrs["output_dtype"], op, kind = _FP8_TYPE, MXFP8_QUANTIZE, _E8M0
        codes = self._variable(f"{name}_codes", form.dtype, source.shape)
        blocks = [*source.shape[:-1], features // (form.block or 1)]
        scales = self._variable(f"{name}_block_scales", kind, blocks)
        self._node(op, name, attrs, inputs, [codes, scales])
        restored = self._restored(source, _Quantized(form, -1, codes, scales, scale))
        if source is not tensor:
            restored = self._reshaped(restored, "as_it_was", tensor.shape, tensor)
        self._put(restored, readers)

    def weight(self, tensor: gs.Tensor, readers: _Readers, form: Format) -> None:
        name, blocks, scale = tensor.name, to_blocks(peek(tensor), form, WEIGHT_REACHES), None
        if form.name == NVFP4:
            scale = self._constant(
                f"{name}_scale", np.asarray(blocks.scale, numpy_type(tensor.dtype))
            )
        scales = self._constant(f"{name}_block_scales", blocks.scales)
        codes = self._constant(f"{name}_codes", blocks.codes)
        self._put(self._restored(tensor, _Quantized(form, 0, codes, scales, scale)), readers)
        if not tensor.outputs and not any(tensor is output for output in self._graph.outputs):
            # A plan knows the weights of its groups by name.
            codes.name, tensor.name = name, ""

    def close(self) -> None:
        """Sorts the new nodes in, each in front of the first one that reads it."""
        if not self._runs:
            return
        graph = self._graph
        put_in_front(graph, self._runs)
        graph.ir_version = max(int(graph.ir_version or 0), _IR)
        graph.import_domains = [
            *(entry for entry in graph.import_domains if entry.domain != TRT_DOMAIN),
            onnx.helper.make_opsetid(TRT_DOMAIN, 1),
        ]

    def _restored(self, old: gs.Tensor, source: _Quantized) -> gs.Tensor:
        """What `source` stands for, of the type and shape of `old`."""
        name, attrs = old.name, {"axis": source.axis, "block_size": source.form.block}
        restored = self._variable(f"{name}_restored", old.dtype, old.shape)
        if source.scale is None:
            attrs["output_dtype"] = onnx_type(old.dtype)
            self._node(MXFP8_DEQUANTIZE, name, attrs, [source.codes, source.scales], [restored])
            return restored
        steps = self._variable(f"{name}_steps", old.dtype, source.scales.shape)
        inputs = [source.scales, source.scale]
        self._node(DEQUANTIZE, f"{name}_block_scales", {}, inputs, [steps])
        self._node(DEQUANTIZE, name, attrs, [source.codes, steps], [restored])
        return restored

    def _reshaped(
        self,
        tensor: gs.Tensor,
        suffix: str,
        shape: Sequence[object] | None,
        like: gs.Tensor | None = None,
    ) -> gs.Tensor:
        """The elements of `tensor` in a shape; in that of `like` where several sizes are open."""
        name = f"{tensor.name}_{suffix}"
        fixed = None if shape is None else [d if isinstance(d, int) else -1 for d in shape]
        if fixed is not None and fixed.count(-1) <= 1:
            target: gs.Tensor = self._constant(f"{name}_shape", np.asarray(fixed, np.int64))
        else:
            target = self._variable(f"{name}_shape", np.int64, None)
            self._node("Shape", f"{name}_shape", {}, [like], [target])
        result = self._variable(name, tensor.dtype, shape)
        self._node("Reshape", name, {}, [tensor, target], [result])
        return result

    def _put(self, restored: gs.Tensor, readers: _Readers) -> None:
        """Lets the readers read it, and the nodes made for it stand in front of the first one."""
        for node, slot in readers:
            node.inputs[slot] = restored
        self._runs.append(self._new)
        self._new = []

    def _constant(self, name: str, values: np.ndarray) -> gs.Constant:
        name = self._names.fresh(name)
        return gs.Constant(name, LazyValues(onnx.numpy_helper.from_array(values, name)))

    def _variable(self, name: str, dtype: object, shape: Sequence[object] | None) -> gs.Variable:
        return gs.Variable(self._names.fresh(name), dtype, shape)

    def _node(
        self,
        op: str,
        name: str,
        attrs: dict[str, int | None],
        inputs: list[gs.Tensor],
        outputs: list[gs.Tensor],
    ) -> None:
        domain = TRT_DOMAIN if op.startswith("TRT_") else None
        name = self._names.fresh(f"{name}_{op}")
        self._new.append(gs.Node(op, name, attrs, inputs, outputs, domain=domain))


def _rows(shape: Sequence[object]) -> list[int | None]:
    """Sizes of the rows along the last axis; None is open.

    Behind one open axis TensorRT-RTX's GEMM is FP4 only where the axis in front of the last stays.
    """
    sizes = [size for size in shape[:-1] if isinstance(size, int)]
    if shape and len(sizes) == len(shape) - 1:
        return [math.prod(sizes)]
    return [None, *sizes[-1:]] if len(shape) > 3 and isinstance(shape[-2], int) else [None]
