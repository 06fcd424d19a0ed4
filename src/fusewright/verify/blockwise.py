"""NVFP4 and MXFP8 in operators that onnxruntime has: what a model in them is judged by.

onnxruntime runs neither TensorRT's operators nor FP4. Here an activation is cut into blocks, scaled
and rounded in float32 operators, as local functions; and a stored weight becomes the floats that it
stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper

from fusewright.errors import ModelError
from fusewright.graph.temporary import temporary_files
from fusewright.quantize.blockwise.values import dequantized
from fusewright.target.formats import MXFP8_DEQUANTIZE, MXFP8_QUANTIZE, NVFP4_QUANTIZE
from fusewright.verify.weights import external, number

_DOMAIN = "fusewright.blocks"
_QUANTIZE = {NVFP4_QUANTIZE: "NVFP4", MXFP8_QUANTIZE: "MXFP8"}
_DEQUANTIZE = "DequantizeLinear"

# The rows of x in blocks of SIZE, in float32, and the largest magnitude of each.
_CUT = """
    wide = Cast <to = 1> (x)
    shape = Shape (x)
    leading = Shape <end = -1> (x)
    cut = Constant <value_ints = [-1, SIZE]> ()
    in_blocks = Concat <axis = 0> (leading, cut)
    blocks = Reshape (wide, in_blocks)
    sizes = Abs (blocks)
    last = Constant <value_ints = [-1]> ()
    peaks = ReduceMax (sizes, last)
"""
# Codes to a tensor of the shape of x and the type of `like`.
_RESTORE = """
    restored = Mul (codes, steps)
    flat = Reshape (restored, shape)
    y = CastLike (flat, like)
"""
# E2M1 has steps of 1/2 below 2, of 1 below 4 and of 2 up to 6, with ties to even; a block whose
# scale rounds to 0 is 0. `like` is the scale of the whole tensor.
_NVFP4 = """
    whole = Cast <to = 1> (like)
    six = Constant <value_float = 6.0> ()
    per_six = Div (peaks, six)
    wanted = Div (per_six, whole)
    rounded = Cast <to = 17> (wanted)
    steps8 = Cast <to = 1> (rounded)
    steps = Mul (steps8, whole)
    zero = Constant <value_float = 0.0> ()
    one = Constant <value_float = 1.0> ()
    none = Equal (steps, zero)
    divisors = Where (none, one, steps)
    quotients = Div (blocks, divisors)
    minus = Constant <value_float = -6.0> ()
    clipped = Clip (quotients, minus, six)
    magnitudes = Abs (clipped)
    two = Constant <value_float = 2.0> ()
    four = Constant <value_float = 4.0> ()
    half = Constant <value_float = 0.5> ()
    below_two = Less (magnitudes, two)
    below_four = Less (magnitudes, four)
    coarse = Where (below_four, one, two)
    grid = Where (below_two, half, coarse)
    counts = Div (clipped, grid)
    nearest = Round (counts)
    codes = Mul (nearest, grid)
"""
# The scale is the smallest power of two by which the block fits into FP8: its logarithm may be off
# by a rounding, which the two comparisons mend.
_MXFP8 = """
    largest = Constant <value_float = 448.0> ()
    tiny = Constant <value_float = 1.1754944e-38> ()
    scaled = Div (peaks, largest)
    wanted = Max (scaled, tiny)
    two = Constant <value_float = 2.0> ()
    half = Constant <value_float = 0.5> ()
    log = Log (wanted)
    log_two = Log (two)
    exponents = Div (log, log_two)
    above = Ceil (exponents)
    guess = Pow (two, above)
    lower = Mul (guess, half)
    is_high = GreaterOrEqual (lower, wanted)
    not_high = Where (is_high, lower, guess)
    higher = Mul (not_high, two)
    is_low = Less (not_high, wanted)
    steps = Where (is_low, higher, not_high)
    quotients = Div (blocks, steps)
    rounded = Cast <to = 17> (quotients)
    codes = Cast <to = 1> (rounded)
"""


def holds_blocks(proto: onnx.ModelProto) -> bool:
    """Whether a model has activations or weights in NVFP4 or MXFP8."""
    ops = {*_QUANTIZE, MXFP8_DEQUANTIZE}
    if any(node.op_type in ops for node in proto.graph.node):
        return True
    return any(t.data_type == onnx.TensorProto.FLOAT4E2M1 for t in proto.graph.initializer)


def with_emulated_blocks(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """A copy that computes the same without NVFP4 and MXFP8; a model without them as it is.

    Args:
        proto: its weights may lie in `folder`; it is not changed.
        folder: where the weights that are computed come to lie.

    Raises:
        ModelError: what is in blocks is used otherwise than in front of a layer.
    """
    if not holds_blocks(proto):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    emulation = _Emulation(copy, folder)
    emulation.activations()
    emulation.weights()
    emulation.close()
    return copy


class _Emulation:
    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self._model, self._graph, self._folder = model, model.graph, folder
        self._stored = {t.name: t for t in self._graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._makers: dict[str, onnx.NodeProto] = {}
        for node in self._graph.node:
            self._makers.update((name, node) for name in node.output)
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._gone: set[int] = set()
        self._calls: dict[int, onnx.NodeProto] = {}

    def activations(self) -> None:
        """A call in place of each quantization and what restores it."""
        for node in self._graph.node:
            if node.op_type not in _QUANTIZE:
                continue
            self._gone.add(id(node))
            for last in self._readers.get(node.output[0], ()):
                if last.op_type not in (_DEQUANTIZE, MXFP8_DEQUANTIZE):
                    raise ModelError(f"'{last.name}' reads the codes of '{node.name}'")
                self._gone.update(id(n) for n in self._readers.get(node.output[1], ()))
                inputs = [*node.input, *([self._like(last)] if len(node.input) == 1 else [])]
                self._calls[id(last)] = helper.make_node(
                    _QUANTIZE[node.op_type], inputs, last.output, last.name, domain=_DOMAIN
                )

    def _like(self, dequantize: onnx.NodeProto) -> str:
        """Name of a stored number of the type that an MXFP8 pair restores to."""
        kind = number(dequantize, "output_dtype", onnx.TensorProto.FLOAT)
        name = f"{_DOMAIN}.{kind}"
        if name not in self._stored:
            self._stored[name] = helper.make_tensor(name, kind, [], [0.0])
            self._graph.initializer.append(self._stored[name])
        return name

    def weights(self) -> None:
        """Floats in place of stored codes."""
        file = self._folder / "blocks.weights"
        file.unlink(missing_ok=True)  # an older one may still be mapped
        with temporary_files(), file.open("wb") as sink:
            for node, values in self._restored():
                name = node.output[0]
                tensor = external(name, values, file.name, sink.tell())
                self._graph.initializer.append(tensor)
                sink.write(np.ascontiguousarray(values).view(np.uint8).data)
                self._gone.add(id(node))

    def _restored(self) -> Iterator[tuple[onnx.NodeProto, np.ndarray]]:
        for node in list(self._graph.node):
            codes = self._stored.get(node.input[0]) if len(node.input) > 1 else None
            if codes is None:
                continue
            if node.op_type == MXFP8_DEQUANTIZE:
                scales, kind = self._array(node.input[1]), number(node, "output_dtype", 1)
                dtype, scale = helper.tensor_dtype_to_np_dtype(kind), 1.0
            elif node.op_type == _DEQUANTIZE and codes.data_type == onnx.TensorProto.FLOAT4E2M1:
                maker = self._makers.get(node.input[1])
                if maker is None or maker.op_type != _DEQUANTIZE:
                    raise ModelError(f"'{node.name}': FP4 codes without FP8 scales")
                self._gone.add(id(maker))
                whole = self._array(maker.input[1])
                scales, scale, dtype = self._array(maker.input[0]), float(whole.item()), whole.dtype
            else:
                continue
            axis = number(node, "axis", 1)
            moved, steps = (np.moveaxis(a, axis, 0) for a in (self._array(codes.name), scales))
            values = np.moveaxis(dequantized(moved, steps, scale), 0, axis)
            yield node, values.astype(dtype)

    def _array(self, name: str) -> np.ndarray:
        if name not in self._stored:
            raise ModelError(f"'{name}' is computed, where a stored scale was expected")
        values: np.ndarray = numpy_helper.to_array(self._stored[name], str(self._folder))
        return values

    def close(self) -> None:
        """Takes out what is replaced, and adds the functions that are called."""
        nodes = [self._calls.get(id(node), node) for node in self._graph.node]
        kept = [node for node in nodes if id(node) not in self._gone]
        del self._graph.node[:]
        self._graph.node.extend(kept)
        used = {name for node in kept for name in node.input}
        used |= {output.name for output in self._graph.output}
        stored = [t for t in self._graph.initializer if t.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(stored)
        opset = next(e.version for e in self._model.opset_import if e.domain in ("", "ai.onnx"))
        called = {node.op_type for node in kept if node.domain == _DOMAIN}
        self._model.functions.extend(_function(name, opset) for name in sorted(called))
        self._model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def _function(name: str, opset: int) -> onnx.FunctionProto:
    """y of NVFP4(x, like) or MXFP8(x, like)."""
    size, codes = {"NVFP4": (16, _NVFP4), "MXFP8": (32, _MXFP8)}[name]
    head = f'<domain: "{_DOMAIN}", opset_import: ["" : {opset}]> {name} (x, like) => (y)'
    cut = _CUT.replace("SIZE", str(size))
    return onnx.parser.parse_function(f"{head} {{ {cut} {codes} {_RESTORE} }}")
