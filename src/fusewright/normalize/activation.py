"""Activations written out: clip pairs, HardSigmoid chains, x·HardSigmoid(x).

The chains come from opsets older than the operator (paddle2onnx, PyTorch before 1.9, TensorFlow's
relu6(x + 3)) and from onnxruntime, which writes HardSwish out when it cleans a model.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.walk import input_at, is_constant, rank_of, scalar
from fusewright.match.matcher import Match
from fusewright.match.pattern import Pattern, const, number, one_of, op, optional, var
from fusewright.normalize.constants import EXACT, exactly, number_of, one
from fusewright.normalize.rule import Edit, Rule

HARDSWISH_OPSET = 14
# The types that onnxruntime has each operator for.
_RELU_TYPES = ("float16", "float32", "float64")
_HARD_TYPES = ("float16", "float32")


def _relu6(inner: Pattern) -> Pattern:
    return op("Clip", inner, number(0.0), exactly(6.0))


def _changes_form(match: Match, types: tuple[str, ...]) -> str | None:
    """A rank that a constant enlarges, or a type that the operator to be written does not have."""
    x = match.tensors["x"]
    if x.dtype is not None and numpy_type(x.dtype).name not in types:
        return f"type {numpy_type(x.dtype)}"
    rank = rank_of(x)
    ranks = [len(t.shape) for node in match.nodes for t in node.inputs if is_constant(t)]
    if rank is not None and max(ranks, default=0) > max(rank, 1):
        return "a constant that enlarges the rank"
    return None


def _clip_pair(match: Match, edit: Edit) -> str | None:
    low, high = number_of(match, "low", 0.0), number_of(match, "high", math.inf)
    if low > high:
        return f"a minimum of {low:g} above the maximum of {high:g}"
    x = match.tensors["x"]
    is_relu = low == 0 and math.isinf(high)
    dtype = _dtype(match, x)
    reason = _changes_form(match, _RELU_TYPES if is_relu else (dtype.name,))
    if reason is not None:
        return reason
    if is_relu:
        edit.replace(match, [edit.node("Relu", [x], match.root.name)])
        return None
    bounds = [
        edit.constant(f"{match.root.name}_{n}", np.array(v, dtype))
        for n, v in (("min", low), ("max", high))
    ]
    edit.replace(match, [edit.node("Clip", [x, *bounds], match.root.name)])
    return None


def _dtype(match: Match, x: gs.Tensor) -> np.dtype:
    bound = match.tensors.get("low", match.tensors.get("high"))
    return numpy_type(bound.dtype if bound is not None else x.dtype)


def _clip_to_relu(match: Match, edit: Edit) -> str | None:
    high = input_at(match.root, 2)
    bound = math.inf if high is None else scalar(high)
    if bound is None or (high is not None and not bound >= _float_max(high)):  # nor NaN
        return "an upper bound"
    reason = _changes_form(match, _RELU_TYPES)
    if reason is not None:
        return reason
    edit.replace(match, [edit.node("Relu", [match.tensors["x"]], match.root.name)])
    return None


def _float_max(tensor: gs.Tensor) -> float:
    return float(np.finfo(tensor.dtype).max) if numpy_type(tensor.dtype).kind == "f" else math.inf


def _hard_sigmoid(match: Match, edit: Edit) -> str | None:
    reason = _changes_form(match, _HARD_TYPES)
    if reason is not None:
        return reason
    if "factor" in match.tensors or "divisor" in match.tensors:
        # relu6(x + 3)·c: HardSigmoid saturates at 1, so c must be 1/6.
        alpha = number_of(match, "factor", 1.0) / number_of(match, "divisor", 1.0)
        beta = 3.0 * alpha
        if abs(6.0 * alpha - 1.0) > EXACT:
            return f"a factor of {alpha:g} where 1/6 is exact"
    else:
        alpha, beta = number_of(match, "alpha", 1.0), number_of(match, "beta", 0.0)
    attrs = {"alpha": alpha, "beta": beta}
    edit.replace(match, [edit.node("HardSigmoid", [match.tensors["x"]], match.root.name, attrs)])
    return None


def _hard_swish(match: Match, edit: Edit) -> str | None:
    reason = _changes_form(match, _HARD_TYPES)
    if reason is not None:
        return reason
    if edit.opset < HARDSWISH_OPSET:
        return f"HardSwish needs opset {HARDSWISH_OPSET}; x·HardSigmoid(x) stays"
    edit.replace(match, [edit.node("HardSwish", [match.tensors["x"]], match.root.name)])
    return None


def _near(value: float) -> object:
    return lambda found: abs(found - value) <= EXACT


_X = var("x")
_SHIFTED = _relu6(op("Add", _X, exactly(3.0)))
_GATE = op("HardSigmoid", _X, alpha=_near(1.0 / 6.0), beta=_near(0.5))
_LINE = one_of(op("Add", op("Mul", _X, one("alpha")), one("beta")), op("Add", _X, one("beta")))

RULES = (
    Rule(
        "ClipPair",
        "min(max(x, a), b) → Clip(x, a, b)",
        one_of(
            op("Min", op("Max", _X, one("low")), one("high")),
            op("Max", op("Min", _X, one("high")), one("low")),
            op("Min", op("Relu", _X), one("high")),
            op("Max", _X, number(0.0)),
        ),
        _clip_pair,
    ),
    Rule(
        "ClipToRelu",
        "Clip(x, 0, ∞) → Relu(x)",
        op("Clip", _X, number(0.0), optional(const("high"))),
        _clip_to_relu,
    ),
    Rule(
        "HardSigmoidChain",
        "relu6(x+3)/6 or clip(αx+β, 0, 1) → HardSigmoid(x)",
        one_of(
            op("Div", _SHIFTED, one("divisor")),
            op("Mul", _SHIFTED, one("factor")),
            op("Clip", _LINE, number(0.0), exactly(1.0)),
        ),
        _hard_sigmoid,
    ),
    Rule(
        "HardSwish",
        "x·HardSigmoid(x, 1/6, 1/2) → HardSwish(x)",
        op("Mul", _X, _GATE),
        _hard_swish,
    ),
)
