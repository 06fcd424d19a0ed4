"""ONNX Attention (opset 23, 24) taken apart, so that it can be quantized.

    Attention(q, k, v, mask) = Softmax(q·scale × kᵀ [softcap] + mask) × v

TensorRT runs the operator as one kernel in float16 only, and with INT8 pairs around it still in
float16; written out it fuses in INT8 too. The scale comes on q, by one Mul; k is transposed by one
Transpose. What keeps a cache between calls, or gives its scores out, stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.walk import attribute, input_at, is_constant, producer, rank_of, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import Const, Pattern, Var, one_of, op, optional, var
from fusewright.normalize.operand import Operand, matmul
from fusewright.normalize.rule import Edit, Rule
from fusewright.normalize.shapes import Size, same_size

_CACHE = {4: "a past key", 5: "a past value", 6: "a number of valid keys"}
_RESULTS = {1: "its present key", 2: "its present value", 3: "its scores"}


@dataclass
class _Attention:
    """One node, and what of it is known."""

    node: gs.Node
    edit: Edit

    def attr(self, name: str) -> float:
        value = attribute(self.node, name, self.edit.opset)
        return 0 if value is None else value

    @cached_property
    def is_flat(self) -> bool:
        """Whether the heads are one axis with the features: [batch, sequence, heads · size]."""
        return rank_of(self.node.inputs[0]) == 3

    def heads(self, slot: int) -> int | None:
        if self.is_flat:
            return int(self.attr("q_num_heads" if slot == 0 else "kv_num_heads"))
        return _int(self.node.inputs[slot].shape[1])

    def head_size(self, slot: int) -> int | None:
        last, heads = _int(self.node.inputs[slot].shape[-1]), self.heads(slot)
        return last // heads if self.is_flat and last and heads else last

    def sequence(self, slot: int) -> Size:
        size: Size = self.node.inputs[slot].shape[-2]
        return size

    @property
    def mask(self) -> gs.Tensor | None:
        return input_at(self.node, 3)

    @cached_property
    def stored_mask(self) -> np.ndarray | None:
        """The mask where it is stored; what only the batch enlarges is: adding it broadcasts."""
        mask = self.mask
        if mask is None or is_constant(mask):
            return None if mask is None else values(mask)
        maker = producer(mask)
        if maker is None or maker.op != "Expand" or not is_constant(maker.inputs[0]):
            return None
        array = values(maker.inputs[0])
        if mask.shape is None or array.ndim > len(mask.shape):
            return None
        lead = (1,) * (len(mask.shape) - array.ndim)
        sizes = [_int(n) or m for n, m in zip(mask.shape, (*lead, *array.shape), strict=True)]
        if sizes[-1] != mask.shape[-1]:
            return None
        return np.broadcast_to(array, sizes)

    @property
    def scale(self) -> float | None:
        given = attribute(self.node, "scale", self.edit.opset)
        size = self.head_size(0)
        if given is not None:
            return float(given)
        return None if size is None else 1.0 / math.sqrt(size)


def _int(size: Size) -> int | None:
    return size if isinstance(size, int) else None


def _rewrite(match: Match, edit: Edit) -> str | None:
    attention = _Attention(match.root, edit)
    reason = _kept(attention) or _unknown(attention)
    if reason is not None:
        return reason
    name, inputs = match.root.name, match.root.inputs
    q, k, v = (Operand(edit, inputs[i], f"{name}_{n}") for i, n in enumerate("qkv"))
    for slot, operand in enumerate((q, k, v)):
        _split_heads(attention, slot, operand)
    scale = edit.constant(f"{name}_scale", np.array(attention.scale, np.float32))
    q.apply("Mul", [scale], q.shape)
    k.transpose([0, 1, 3, 2])
    scores = matmul(q, k, f"{name}_scores")
    _mask(attention, scores)
    scores.apply("Softmax", [], scores.shape, axis=-1)
    if _may_be_empty(attention):
        _guard(scores)
    result = matmul(scores, v, name)
    if attention.is_flat:
        result.transpose([0, 2, 1, 3])
        result.merge_last(2)
    edit.replace(match, result.nodes)
    return None


def _kept(attention: _Attention) -> str | None:
    """What the parts could not say."""
    node = attention.node
    for slot, what in _CACHE.items():
        if input_at(node, slot) is not None:
            return f"it reads {what}"
    outputs = {id(t) for t in attention.edit.model.graph.outputs}
    for slot, what in _RESULTS.items():
        if slot < len(node.outputs) and (
            node.outputs[slot].outputs or id(node.outputs[slot]) in outputs
        ):
            return f"{what} is read"
    if any(t.dtype is not None and numpy_type(t.dtype) != np.float32 for t in node.inputs[:3]):
        return f"type {numpy_type(node.inputs[0].dtype)}, which runs as one kernel"
    if attention.attr("softmax_precision") not in (0, onnx.TensorProto.FLOAT):
        return "a Softmax of another precision"
    return None


def _unknown(attention: _Attention) -> str | None:
    """What must be known and is not."""
    node, mask = attention.node, attention.mask
    ranks = {rank_of(t) for t in node.inputs[:3]}
    if ranks not in ({3}, {4}):
        return "ranks that are not known"
    sizes = [attention.heads(slot) for slot in range(3)]
    if attention.scale is None or not all(sizes):
        return "numbers of heads, or a head size, that are not known"
    if attention.is_flat and None in (attention.head_size(slot) for slot in range(3)):
        return "a head size that is not known"
    queries, keys = attention.sequence(0), attention.sequence(1)
    if attention.attr("is_causal") and (_int(queries) is None or _int(keys) is None):
        return "causal over a sequence of unknown length"
    if mask is not None and (mask.shape is None or not same_size(mask.shape[-1], keys)):
        return "a mask that is not known to be as long as the keys"
    return None


def _split_heads(attention: _Attention, slot: int, operand: Operand) -> None:
    """To [batch, heads, sequence, size], keys and values repeated for groups of queries."""
    heads, size = attention.heads(slot), attention.head_size(slot)
    queries = attention.heads(0)
    if attention.is_flat and operand.shape is not None and heads is not None:
        lead = operand.shape[:2]
        operand.reshape([0, 0, heads, size or -1], [*lead, heads, size])
        operand.transpose([0, 2, 1, 3])
    if heads == queries or heads is None or queries is None or operand.shape is None:
        return
    batch, _, sequence, _ = operand.shape
    times = queries // heads
    operand.unsqueeze([2])
    repeated = operand.integers([1, 1, times, 1, 1])
    operand.apply("Expand", [repeated], [batch, heads, times, sequence, size])
    operand.reshape([0, queries, -1, size or -1], [batch, queries, sequence, size])


def _mask(attention: _Attention, scores: Operand) -> None:
    edit, name, cap = attention.edit, scores.name, attention.attr("softcap")
    if cap:
        stored = edit.constant(f"{name}_cap", np.array(cap, np.float32))
        scores.apply("Div", [stored], scores.shape)
        scores.apply("Tanh", [], scores.shape)
        scores.apply("Mul", [stored], scores.shape)
    for bias in _biases(attention, scores):
        scores.apply("Add", [bias], scores.shape)


def _biases(attention: _Attention, scores: Operand) -> list[gs.Tensor]:
    """What is added to the scores: the mask as numbers, and the causal triangle."""
    edit, name, mask = attention.edit, scores.name, attention.mask
    biases: list[gs.Tensor] = []
    stored = attention.stored_mask
    if stored is not None:
        bias = _as_bias(stored) if stored.dtype == np.bool_ else stored
        biases.append(edit.constant(f"{name}_mask", bias))
    elif mask is not None and numpy_type(mask.dtype) != np.bool_:
        biases.append(mask)
    elif mask is not None:
        zero, never = (np.array(n, np.float32) for n in (0.0, -np.inf))
        inputs = [mask, edit.constant(f"{name}_zero", zero), edit.constant(f"{name}_never", never)]
        where = edit.node("Where", inputs, f"{name}_mask")
        where.outputs[0].dtype, where.outputs[0].shape = np.dtype(np.float32), mask.shape
        scores.nodes.append(where)
        biases.append(where.outputs[0])
    if attention.attr("is_causal"):
        shape = _int(attention.sequence(0)) or 0, _int(attention.sequence(1)) or 0
        triangle = _as_bias(np.tri(*shape, dtype=np.bool_))
        biases.append(edit.constant(f"{name}_causal", triangle))
    return biases


def _as_bias(allowed: np.ndarray) -> np.ndarray:
    return np.where(allowed, np.float32(0.0), np.float32(-np.inf))


def _may_be_empty(attention: _Attention) -> bool:
    """Whether a query may see no key at all; the operator's result is then zero, not NaN."""
    array = attention.stored_mask
    if array is None:
        return attention.mask is not None
    allowed = array if array.dtype == np.bool_ else array > -np.inf
    if attention.attr("is_causal"):
        shape = _int(attention.sequence(0)) or 0, _int(attention.sequence(1)) or 0
        allowed = allowed & np.tri(*shape, dtype=np.bool_)
    return not bool(np.all(np.any(allowed, axis=-1)))


def _guard(scores: Operand) -> None:
    """Zero where the Softmax of nothing is NaN, as PyTorch's exporters write it."""
    edit, name, softmax = scores.edit, scores.name, scores.tensor
    scores.apply("IsNaN", [], scores.shape)
    zero = edit.constant(f"{name}_zero", np.array(0.0, np.float32))
    scores.apply("Where", [zero, softmax], scores.shape)
    scores.nodes[-2].outputs[0].dtype = np.dtype(np.bool_)
    scores.tensor.dtype = softmax.dtype


def _any(name: str) -> Pattern:
    return one_of(Var(name), Const(name))


_REST = tuple(optional(_any(name)) for name in ("mask", "past_k", "past_v", "valid"))

RULES = (
    Rule(
        "AttentionParts",
        "Attention(q, k, v, mask) → Softmax(scale·q × kᵀ + mask) × v",
        op("Attention", var("q"), _any("k"), _any("v"), *_REST),
        _rewrite,
    ),
)
