"""Normalizations: they read float, and what they write is quantized where it is read in INT8.

Each is the standard operator where the model's opset has it, before that the one chain that the
normalizer makes of every spelling. Its scale and bias are inputs of the call: that is where
SmoothQuant migrates to.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fusewright.groups.kind import GroupKind
from fusewright.match.matcher import Match
from fusewright.match.pattern import Const, Pattern, const, number, one_of, op, optional, var
from fusewright.normalize.constants import one
from fusewright.normalize.rmsnorm import subtracts_mean
from fusewright.normalize.shapes import same_shape, shape_op

_PARAMETERS = ("scale", "bias")


def _vector(name: str) -> Const:
    """Over the last axis."""
    return const(name, test=lambda t: len(t.shape) == 1, expected=f"a {name} vector")


def _column(name: str) -> Const:
    """Over the channels, which come behind the batch: all axes behind are one."""
    return const(name, test=_is_column, expected=f"a {name} per channel")


def _is_column(tensor: gs.Constant) -> bool:
    shape = tuple(tensor.shape)
    return len(shape) > 1 and shape[-1] == 1 and sum(size != 1 for size in shape) <= 1


def _scaled(layer: Pattern, scale: Const, bias: Const) -> tuple[Pattern, ...]:
    """layer·γ + β, each of them optional."""
    by_scale = op("Mul", layer, scale)
    return op("Add", by_scale, bias), by_scale, op("Add", layer, bias), layer


def _last_mean(x: Pattern) -> Pattern:
    """Mean over the last axis: an attribute before opset 18, an input since."""
    return one_of(
        op("ReduceMean", x, axes=[-1], keepdims=1),
        op("ReduceMean", x, number(-1.0), keepdims=1),
    )


def _layer_norm() -> Pattern:
    x = var("x")
    # Opsets before 17 only, where the axes are an attribute.
    centred = op("Sub", x, op("ReduceMean", x, axes=[-1], keepdims=1))
    squares = op("Pow", centred, number(2.0))
    variance = op("ReduceMean", squares, axes=[-1], keepdims=1)
    std = op("Sqrt", op("Add", variance, one("eps")))
    layer = op("Div", centred, std, name="layer")
    whole = op("LayerNormalization", x, const("scale"), optional(const("bias")), name="layer")
    return one_of(whole, *_scaled(layer, _vector("scale"), _vector("bias")))


def _rms_norm() -> Pattern:
    x = var("x")
    square = _last_mean(op("Pow", x, number(2.0)))
    inverse = op("Reciprocal", op("Sqrt", op("Add", square, one("eps"))))
    layer = op("Mul", x, inverse, name="layer")
    whole = op("RMSNormalization", x, const("scale"), name="layer")
    return one_of(whole, op("Mul", layer, _vector("scale")), layer)


def _group_norm() -> Pattern:
    x = var("x")
    rows = op("Reshape", x, const())
    layer = op("InstanceNormalization", rows, const(), const(), name="layer")
    back = op("Reshape", layer, one_of(const(), shape_op(x)))
    whole = op("GroupNormalization", x, const("scale"), const("bias"), name="layer")
    return one_of(whole, *_scaled(back, _column("scale"), _column("bias")))


def _centred(match: Match) -> str | None:
    return "a mean is subtracted in front" if subtracts_mean(match.tensors["x"]) else None


def _other_shape(match: Match) -> str | None:
    x, output = match.tensors["x"], match.output
    known = x.shape is not None and output.shape is not None
    return "another shape behind than in front" if known and not same_shape(x, output) else None


def _reads_float(kind: str) -> str:
    return f"{kind} reads float; its output is quantized where it is read in INT8"


LAYER_NORM = GroupKind(
    kind="LayerNorm",
    formula="(x − mean(x)) / √(var(x) + ε) · γ + β",
    pattern=_layer_norm(),
    parameters=_PARAMETERS,
    never_quantized=_reads_float("LayerNorm"),
)

RMS_NORM = GroupKind(
    kind="RMSNorm",
    formula="x / √(mean(x²) + ε) · γ",
    pattern=_rms_norm(),
    parameters=("scale",),
    never_quantized=_reads_float("RMSNorm"),
    rejects=_centred,
)

GROUP_NORM = GroupKind(
    kind="GroupNorm",
    formula="(x − mean(x)) / √(var(x) + ε) per group of channels, · γ + β per channel",
    pattern=_group_norm(),
    parameters=_PARAMETERS,
    never_quantized=_reads_float("GroupNorm"),
    rejects=_other_shape,
)
