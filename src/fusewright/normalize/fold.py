"""Folding what follows a convolution or a Linear into its weights: BN, scale, bias.

    BN(conv(x, w, b)) = conv(x, w·γ/σ, (b−μ)·γ/σ + β),  σ = √(var + ε)

BN comes as its own node, as Mul+Add (onnx-simplifier, paddle2onnx, TF's folded BN), and a bias as
an Add behind the convolution. Folding is done in float64 and stored in the weights' type.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.edit import detach
from fusewright.graph.walk import attribute, input_at, rank_of, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import Pattern, const, one_of, op, optional, var
from fusewright.normalize.rule import Edit, Rule

_WEIGHTED = op("Conv|ConvTranspose", var("x"), const("w"), optional(const("b")), name="layer")
_BN_PARAMETERS = (const("gamma"), const("beta"), const("mean"), const("variance"))


def _fold_batchnorm(match: Match, edit: Edit) -> str | None:
    node = match.root
    if attribute(node, "training_mode", edit.opset):
        return "it runs in training mode"
    if any(t.outputs for t in node.outputs[1:]):
        return "its running statistics are used"
    return _fold(match, edit, *_scale_and_shift(match, edit))


def _scale_and_shift(match: Match, edit: Edit) -> tuple[np.ndarray, np.ndarray]:
    """BN(x) = scale·x + shift, per channel, in float64."""
    gamma, beta, mean, variance = (
        values(match.tensors[n]).astype(np.float64) for n in ("gamma", "beta", "mean", "variance")
    )
    with np.errstate(invalid="ignore"):  # NaN is refused where all is folded, with its node
        scale = gamma / np.sqrt(variance + attribute(match.root, "epsilon", edit.opset))
    return scale, beta - mean * scale


def _fold_affine(match: Match, edit: Edit) -> str | None:
    channels, rank = _channels(match)
    vector = _per_channel(values(match.tensors["c"]), channels, rank)
    if vector is None:
        return "a constant that is not per channel"
    if match.root.op == "Mul":
        return _fold(match, edit, vector, np.zeros(channels))
    if match.root.op == "Div":
        return _fold(match, edit, 1.0 / vector, np.zeros(channels)) if vector.all() else "a zero"
    return _fold(match, edit, np.ones(channels), -vector if match.root.op == "Sub" else vector)


def _fold(match: Match, edit: Edit, scale: np.ndarray, shift: np.ndarray) -> str | None:
    """Makes the layer compute scale·layer + shift, per output channel."""
    layer, w = match.named["layer"], match.tensors["w"]
    old = values(w)
    if old.dtype.kind != "f":
        return f"weights of type {old.dtype}"
    bias = match.tensors.get("b")
    was = values(bias).astype(np.float64) if bias is not None else np.zeros(len(scale))
    if not np.all(scale == 1.0):
        groups = attribute(layer, "group", edit.opset) or 1
        scaled = _scale_weight(layer.op, old, scale, groups)
        layer.inputs[1] = edit.stored(w, scaled.astype(old.dtype))
    folded = (was * scale + shift).astype(old.dtype)
    if bias is not None:
        layer.inputs[2] = edit.stored(bias, folded)
    elif np.any(folded):
        _set_bias(layer, edit.constant(f"{w.name}_bias", folded))
    edit.replace(match, [layer])
    return None


def _set_bias(layer: gs.Node, bias: gs.Constant) -> None:
    if input_at(layer, 2) is None and len(layer.inputs) > 2:
        layer.inputs[2] = bias
    else:
        layer.inputs.append(bias)


def _scale_weight(op_type: str, w: np.ndarray, scale: np.ndarray, groups: int) -> np.ndarray:
    wide: np.ndarray = w.astype(np.float64)
    if op_type == "Conv":
        return np.asarray(wide * scale.reshape(-1, *(1,) * (w.ndim - 1)))
    # ConvTranspose: [in, out/groups, …]; output channels run over the groups first.
    split = wide.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    factor = scale.reshape(groups, 1, w.shape[1], *(1,) * (w.ndim - 2))
    return np.asarray((split * factor).reshape(w.shape))


def _channels(match: Match) -> tuple[int, int]:
    layer, shape = match.named["layer"], match.tensors["w"].shape
    if layer.op == "Conv":
        return int(shape[0]), len(shape)
    return int(shape[1]) * int(layer.attrs.get("group", 1)), len(shape)


def _per_channel(array: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """A constant that broadcasts over [N, C, …] as a vector over C, else None."""
    wide = array.astype(np.float64)
    if array.size == 1 and array.ndim <= rank:
        return np.full(channels, wide.reshape(-1)[0])
    shape = (1,) * (rank - array.ndim) + array.shape
    if len(shape) != rank or shape[1] != channels or array.size != channels:
        return None
    return wide.reshape(-1)


def _fold_linear_batchnorm(match: Match, edit: Edit) -> str | None:
    node, add, w = match.root, match.named.get("add"), match.tensors["w"]
    old = values(w)
    if attribute(node, "training_mode", edit.opset):
        return "it runs in training mode"
    if old.ndim != 2 or rank_of(match.tensors["x"]) != 2:
        # BN works on axis 1; of [batch, tokens, features] that is not what the Linear writes.
        return "an input or a weight that is not known to be of rank 2"
    scale, shift = _scale_and_shift(match, edit)
    bias = values(match.tensors["b"]).astype(np.float64) if add is not None else 0.0
    folded = (bias * scale + shift).astype(old.dtype)
    layer = match.named["layer"]
    layer.inputs[1] = edit.stored(w, (old * scale).astype(old.dtype))
    tail = edit.node("Add", [layer.outputs[0], edit.constant(f"{w.name}_bias", folded)], node.name)
    if add is not None:
        detach(add)
    edit.replace(match, [layer, tail])
    return None


def _linear_with_bias() -> Pattern:
    layer = op("MatMul", var("x"), const("w"), name="layer")
    return one_of(op("Add", layer, const("b"), name="add"), layer)


RULES = (
    Rule(
        "FoldBatchNorm",
        "BN(conv(x, w, b)) → conv(x, w·γ/σ, (b−μ)·γ/σ+β)",
        op("BatchNormalization", _WEIGHTED, *_BN_PARAMETERS),
        _fold_batchnorm,
    ),
    Rule(
        "FoldScale",
        "conv(x, w, b)·c → conv(x, w·c, b·c), and Add, Sub, Div alike",
        one_of(op("Mul|Add", _WEIGHTED, const("c")), op("Div|Sub", _WEIGHTED, const("c"))),
        _fold_affine,
    ),
    Rule(
        "FoldLinearBatchNorm",
        "BN(x·W + b) → x·(W·γ/σ) + (b−μ)·γ/σ+β",
        op("BatchNormalization", _linear_with_bias(), *_BN_PARAMETERS),
        _fold_linear_batchnorm,
    ),
)
