"""What onnxruntime's optimizer has fused, written out: TensorRT has none of its operators.

Each body is the formula of the operator's documentation (onnxruntime, ContribOperators.md). A form
that is not in the table (masks, past keys, quantized weights) stays, and is named in a note.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fusewright.graph.light import without_weights
from fusewright.graph.opset import LAYERNORM_OPSET
from fusewright.graph.refused import FUSED
from fusewright.graph.shapes import infer_shapes

_SPLIT_SIZES_OPSET = 13
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


def is_fused(node: onnx.NodeProto) -> bool:
    """Whether it is one of onnxruntime's own operators, of those that are written out here."""
    return node.domain == FUSED and node.op_type in _BODIES


def write_out(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model, its weights in it, in which fused operators are standard ones.

    Ranks that a form needs may be known only when what is in front has been written out.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    while any(map(is_fused, copy.graph.node)):
        left = sum(map(is_fused, copy.graph.node))
        _once(copy)
        if sum(map(is_fused, copy.graph.node)) == left:
            break
    return copy


def _once(proto: onnx.ModelProto) -> None:
    """Writes out what can be by what is known of ranks and types, in place."""
    graph = proto.graph
    light = without_weights(proto)
    infer_shapes(light)
    known = (*light.graph.input, *light.graph.value_info)
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in known
        if v.type.tensor_type.HasField("shape")
    }
    ranks |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    types = {v.name: v.type.tensor_type.elem_type for v in known}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    opset = next(e.version for e in proto.opset_import if e.domain in ("", "ai.onnx"))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        kind = _kind_of(node, types) if is_fused(node) else None
        body = _Body(node, _Facts(ranks, dims, opset, kind or onnx.TensorProto.FLOAT))
        done = kind is not None and _BODIES[node.op_type](body)
        nodes += body.nodes if done else [node]
        graph.initializer.extend(body.stored if done else ())
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def _kind_of(node: onnx.NodeProto, types: Mapping[str, int]) -> int | None:
    """The type of a node's floats; None where it is not known: what is stored with them needs it.

    Where its inputs' are not, behind another such operator, it is what the whole model has.
    """
    found = {types[name] for name in node.input if name in types} & _FLOATS
    found = found or (set(types.values()) & _FLOATS)
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class _Facts:
    """What bodies ask of a node and its model; `kind` is the type of the floats."""

    ranks: Mapping[str, int]
    dims: Mapping[str, tuple[int, ...]]
    opset: int
    kind: int


@dataclass
class _Body:
    """The nodes that one operator is written out as; `node`'s name goes to the heaviest of them."""

    node: onnx.NodeProto
    facts: _Facts
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.node.name or self.node.output[0]

    def read(self, index: int) -> str:
        """Name of an input; empty where it is omitted."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def output(self, index: int) -> str:
        return self.node.output[index] if index < len(self.node.output) else ""

    def attr(self, name: str, default: Any) -> Any:
        found = next((a for a in self.node.attribute if a.name == name), None)
        return default if found is None else helper.get_attribute_value(found)

    def const(self, value: Any, dtype: type | None = None) -> str:
        kind = np.dtype(dtype) if dtype else helper.tensor_dtype_to_np_dtype(self.facts.kind)
        name = f"{self.name}/const_{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def op(self, op: str, *reads: str, to: str = "", named: bool = False, **attrs: Any) -> str:
        made = f"{self.name}/{op}_{len(self.nodes)}"
        name = self.name if named else made
        self.nodes.append(helper.make_node(op, reads, [to or made], name, **attrs))
        return to or made

    def transposed(self, tensor: str) -> str | None:
        """With its last two axes exchanged; None where the rank is not known."""
        rank = self.facts.ranks.get(tensor, 0)
        if rank < 2:
            return None
        order = [*range(rank - 2), rank - 1, rank - 2]
        return self.op("Transpose", tensor, perm=order)


def _bias(body: _Body) -> str:
    """x, with the bias that is the second input, where there is one."""
    x, bias = body.read(0), body.read(1)
    return body.op("Add", x, bias) if bias else x


def _gelu(body: _Body) -> bool:
    """0.5·x·(1 + erf(x/√2))."""
    x = _bias(body)
    erf = body.op("Erf", body.op("Div", x, body.const(math.sqrt(2.0))))
    whole = body.op("Mul", x, body.op("Add", erf, body.const(1.0)))
    body.op("Mul", whole, body.const(0.5), to=body.output(0), named=True)
    return True


def _fast_gelu(body: _Body) -> bool:
    """0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    x = _bias(body)
    cube = body.op("Mul", body.op("Pow", x, body.const(3.0)), body.const(0.044715))
    inner = body.op("Mul", body.op("Add", x, cube), body.const(math.sqrt(2.0 / math.pi)))
    gate = body.op("Add", body.op("Tanh", inner), body.const(1.0))
    whole = body.op("Mul", x, gate)
    body.op("Mul", whole, body.const(0.5), to=body.output(0), named=True)
    return True


def _quick_gelu(body: _Body) -> bool:
    """x·sigmoid(α·x)."""
    x = body.read(0)
    gate = body.op("Sigmoid", body.op("Mul", x, body.const(body.attr("alpha", 1.702))))
    body.op("Mul", x, gate, to=body.output(0), named=True)
    return True


def _matmul(body: _Body) -> bool:
    """α·A·B, either of them transposed."""
    if body.attr("transBatchA", 0) or body.attr("transBatchB", 0):
        return False
    operands: list[str] = []
    for index, flag in enumerate(("transA", "transB")):
        tensor: str | None = body.read(index)
        if body.attr(flag, 0):
            tensor = body.transposed(body.read(index))
        if tensor is None:
            return False
        operands.append(tensor)
    alpha, out = body.attr("alpha", 1.0), body.output(0)
    if alpha == 1.0:
        body.op("MatMul", *operands, to=out, named=True)
    else:
        product = body.op("MatMul", *operands, named=True)
        body.op("Mul", product, body.const(alpha), to=out)
    return True


def _skip_layer_norm(body: _Body) -> bool:
    """LayerNorm(x + skip + bias), and that sum."""
    if body.output(1) or body.output(2):
        return False
    total = body.op("Add", body.read(0), body.read(1), to="" if body.read(4) else body.output(3))
    if body.read(4):
        total = body.op("Add", total, body.read(4), to=body.output(3))
    epsilon, scale, shift = body.attr("epsilon", 1e-12), body.read(2), body.read(3)
    if body.facts.opset >= LAYERNORM_OPSET:
        reads = [total, scale, *([shift] if shift else [])]
        body.op("LayerNormalization", *reads, to=body.output(0), named=True, epsilon=epsilon)
        return True
    away = body.op("Sub", total, body.op("ReduceMean", total, axes=[-1]))
    variance = body.op("ReduceMean", body.op("Pow", away, body.const(2.0)), axes=[-1])
    deviation = body.op("Sqrt", body.op("Add", variance, body.const(epsilon)))
    normal = body.op("Div", away, deviation)
    scaled = body.op("Mul", normal, scale, to="" if shift else body.output(0), named=not shift)
    if shift:
        body.op("Add", scaled, shift, to=body.output(0), named=True)
    return True


# Activation → its attributes, in the order of `activation_params`.
_ACTIVATIONS: Mapping[str, Sequence[str]] = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}


def _activated(body: _Body, tensor: str, params: Sequence[float]) -> bool:
    name = body.attr("activation", b"").decode()
    if name == "Clip" and len(params) == 2:
        body.op("Clip", tensor, *map(body.const, params), to=body.output(0))
        return True
    if name not in _ACTIVATIONS:
        return False
    attrs: dict[str, Any] = dict(zip(_ACTIVATIONS[name], map(float, params), strict=False))
    body.op(name, tensor, to=body.output(0), **attrs)
    return True


def _conv(body: _Body) -> bool:
    """act(conv(x, w, b) + z)."""
    own = ("activation", "activation_params")
    attrs = {a.name: helper.get_attribute_value(a) for a in body.node.attribute}
    kept = {name: value for name, value in attrs.items() if name not in own}
    reads = [body.read(i) for i in range(3) if body.read(i)]
    out = body.op("Conv", *reads, named=True, **kept)
    if body.read(3):
        out = body.op("Add", out, body.read(3))
    return _activated(body, out, body.attr("activation_params", ()))


def _gemm(body: _Body) -> bool:
    """act(gemm(a, b, c))."""
    attrs = {a.name: helper.get_attribute_value(a) for a in body.node.attribute}
    kept = {n: value for n, value in attrs.items() if not n.startswith("activation")}
    reads = [body.read(i) for i in range(3) if body.read(i)]
    names = ("activation_alpha", "activation_beta")
    params = [attrs[name] for name in names if name in attrs]
    return _activated(body, body.op("Gemm", *reads, named=True, **kept), params)


def _attention(body: _Body) -> bool:
    """softmax(scale·q·kᵀ)·v of one packed projection, without masks and without a past."""
    heads, weight = int(body.attr("num_heads", 0)), body.facts.dims.get(body.read(1), ())
    odd = ("unidirectional", "qkv_hidden_sizes", "do_rotary", "past_present_share_buffer")
    more = any(body.read(i) for i in range(3, len(body.node.input))) or body.output(1)
    if more or any(body.attr(name, 0) for name in odd) or not heads or len(weight) != 2:
        return False
    width = weight[1] // 3
    packed = body.op("MatMul", body.read(0), body.read(1), named=True)
    packed = body.op("Add", packed, body.read(2)) if body.read(2) else packed
    parts = _split(body, packed, width)
    q, k, v = (_in_heads(body, part, heads, width) for part in parts)
    scale = body.attr("scale", 0.0) or 1.0 / math.sqrt(width // heads)
    turned = body.op("Transpose", k, perm=[0, 1, 3, 2])
    scores = body.op("Mul", body.op("MatMul", q, turned), body.const(scale))
    found = body.op("MatMul", body.op("Softmax", scores, axis=-1), v)
    merged = body.op("Transpose", found, perm=[0, 2, 1, 3])
    body.op("Reshape", merged, body.const([0, 0, width], np.int64), to=body.output(0))
    return True


def _split(body: _Body, packed: str, width: int) -> list[str]:
    outputs = [f"{packed}/{part}" for part in "qkv"]
    sizes = [width] * 3
    by_input = body.facts.opset >= _SPLIT_SIZES_OPSET
    reads = [packed, *([body.const(sizes, np.int64)] if by_input else [])]
    attrs: dict[str, Any] = {} if by_input else {"split": sizes}
    name = f"{body.name}/Split"
    body.nodes.append(helper.make_node("Split", reads, outputs, name, axis=-1, **attrs))
    return outputs


def _in_heads(body: _Body, tensor: str, heads: int, width: int) -> str:
    shape = body.const([0, 0, heads, width // heads], np.int64)
    return body.op("Transpose", body.op("Reshape", tensor, shape), perm=[0, 2, 1, 3])


_BODIES: Mapping[str, Callable[[_Body], bool]] = {
    "Attention": _attention,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Gelu": _gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_norm,
}
