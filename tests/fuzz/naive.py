"""What plain fake quantization makes of a graph: what an honest loss is measured by.

Every input of a Conv, ConvTranspose, MatMul, Gemm, Einsum or Attention is rounded: an activation by
the largest value on the calibration samples, a weight by that of each output channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
from building import run
from onnx import TensorProto, helper, numpy_helper

Feeds = Sequence[Mapping[str, np.ndarray]]
HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Attention")
# The last level of each format; INT4 rounds only what is stored. Steps of FP8 (E4M3) double with
# each power of two: eight from one to the next, down to 2⁻⁶.
LEVELS = {"int8": 127, "fp8": 448, "int4": 7, "nvfp4": 7}
_FP8 = LEVELS["fp8"]


def faked(
    proto: onnx.ModelProto, feeds: Feeds, quantized: str, per_tensor: bool = False
) -> onnx.ModelProto:
    """The graph with rounded inputs of heavy operators; its bodies and functions as they are.

    Args:
        per_tensor: weights have one step each.
    """
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    levels, stored = LEVELS[quantized], {t.name: t for t in model.graph.initializer}
    reads = [(n, i) for n in model.graph.node if n.op_type in HEAVY for i in range(len(n.input))]
    reads = [(n, i) for n, i in reads if n.input[i] and (i < 2 or n.op_type == "Attention")]
    moving = {n.input[i] for n, i in reads if n.input[i] not in stored}
    peaks = {} if quantized == "int4" else _peaks(proto, feeds, moving)
    nodes = [n for name, peak in peaks.items() for n in _rounding(model, name, peak, levels)]
    for node, i in reads:
        name = node.input[i]
        if name in stored:
            node.input[i] = _rounded_weight(model, stored[name], levels, node, per_tensor)
        elif name in peaks:
            node.input[i] = f"{name}_rounded"
    _place(model, nodes)
    return model


def rounded_to_bf16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with every stored float, and whatever a node computes, rounded to BF16."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            rounded = array.astype(ml_dtypes.bfloat16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = (*inferred.value_info, *inferred.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in floats:
                node.output[i] = f"{name}_exact"
                narrow = helper.make_node(
                    "Cast", [node.output[i]], [f"{name}_bf16"], to=TensorProto.BFLOAT16
                )
                wide = helper.make_node("Cast", narrow.output, [name], to=TensorProto.FLOAT)
                nodes += [narrow, wide]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


def _peaks(proto: onnx.ModelProto, feeds: Feeds, names: Iterable[str]) -> dict[str, float]:
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    known = {v.name for v in (*proto.graph.output, *proto.graph.input)}
    more = sorted(set(names) - known)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    found: dict[str, float] = {}
    for feed in feeds:
        arrays = dict(feed)
        outputs = (v.name for v in watched.graph.output)
        arrays.update(zip(outputs, run(watched, feed), strict=True))
        for name in names:
            if arrays[name].dtype == np.float32:
                peak = float(np.abs(arrays[name]).max(initial=0.0))
                found[name] = max(found.get(name, 1e-30), peak)
    return found


def _rounding(model: onnx.ModelProto, name: str, peak: float, levels: int) -> list[onnx.NodeProto]:
    """The value in whole steps, as far as the largest one that was seen."""
    numbers = {"step": peak / levels, "low": -peak, "high": peak}
    numbers |= {"least": 2.0**-6, "ln": 1 / np.log(2), "bits": 3.0, "two": 2.0}
    for suffix, value in numbers.items():
        constant = numpy_helper.from_array(np.float32(value), f"{name}_{suffix}")
        model.graph.initializer.append(constant)
    nodes = []

    def op(kind: str, *inputs: str, to: str = "") -> str:
        made = to or f"{name}_{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [made]))
        return made

    inside = op("Min", op("Max", name, f"{name}_low"), f"{name}_high")
    steps = op("Div", inside, f"{name}_step")
    if levels == _FP8:
        size = op("Max", op("Abs", steps), f"{name}_least")
        power = op("Floor", op("Mul", op("Log", size), f"{name}_ln"))
        unit = op("Pow", f"{name}_two", op("Sub", power, f"{name}_bits"))
        whole = op("Mul", op("Round", op("Div", steps, unit)), unit)
    else:
        whole = op("Round", steps)
    op("Mul", whole, f"{name}_step", to=f"{name}_rounded")
    return nodes


def _rounded_weight(
    model: onnx.ModelProto,
    tensor: onnx.TensorProto,
    levels: int,
    node: onnx.NodeProto,
    per_tensor: bool,
) -> str:
    name = f"{tensor.name}_rounded_for_{node.output[0]}"
    array = numpy_helper.to_array(tensor)
    if array.dtype != np.float32 or array.ndim < 2:
        return str(tensor.name)
    axis = 0 if node.op_type == "Conv" or _is_turned(node) else array.ndim - 1
    others = tuple(i for i in range(array.ndim) if i != axis or per_tensor)
    step = np.maximum(np.abs(array).max(axis=others, keepdims=True), 1e-30) / levels
    steps = array / step
    whole = steps.astype(ml_dtypes.float8_e4m3fn) if levels == _FP8 else np.rint(steps)
    rounded = (whole.astype(np.float32) * step).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(rounded, name))
    return name


def _is_turned(node: onnx.NodeProto) -> bool:
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return turned or node.op_type == "Einsum"


def _place(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Puts the new nodes behind what they read."""
    made = {name for node in model.graph.node for name in node.output}
    left, order = list(nodes), []
    done = {name for n in nodes for name in n.input} - made - {o for n in nodes for o in n.output}
    for node in (None, *model.graph.node):
        if node is not None:
            order.append(onnx.NodeProto.FromString(node.SerializeToString()))
            done.update(node.output)
        while ready := [n for n in left if set(n.input) <= done]:
            order += ready
            done |= {name for n in ready for name in n.output}
            left = [n for n in left if not any(n is r for r in ready)]
    del model.graph.node[:]
    model.graph.node.extend(order)
