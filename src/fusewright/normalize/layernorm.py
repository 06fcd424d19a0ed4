"""LayerNorm in one form, the operator, which exists from opset 17 on.

    LayerNorm(x) = (x − mean(x)) / √(mean((x − mean(x))²) + ε) · γ + β   over the last axes

Older PyTorch, hand-written modules and every exporter to opsets before 17 write it out, TensorFlow
as its batch normalization: x·g + (β − mean·g) with g = γ/√(variance + ε).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.opset import LAYERNORM_OPSET
from fusewright.graph.walk import producer, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import Pattern, const, one_of, op, optional, var
from fusewright.normalize.affine import Shape, behind, normalized_shape, parameter
from fusewright.normalize.moments import (
    deviation,
    epsilon_of,
    inverse,
    mean,
    squared,
    trailing_axes,
    type_of,
)
from fusewright.normalize.rule import Edit, Rule

# The operators of the chain in the form that stands for it before the operator exists.
_CHAIN = ("Add", "Div", "Pow", "ReduceMean", "ReduceMean", "Sqrt", "Sub")
_AFFINE = (("Mul", "scale"), ("Add", "bias"))


def layer_norm_chain(x: Pattern) -> Pattern:
    """Every spelling, up to a scale and a bias that are applied to the result."""
    scale = const("scale")
    average = mean(x, "mean")
    # PyTorch before 1.11 subtracts twice; tensor.var() has a mean of its own.
    any_average = one_of(average, mean(x, "mean_again"))
    centred = op("Sub", x, average)
    any_centred = one_of(centred, op("Sub", x, any_average))
    variance = one_of(
        mean(squared(any_centred), "variance"),
        op("Sub", mean(squared(x), "variance"), squared(any_average)),
    )
    std = deviation(variance)
    inverted = inverse(std, variance)
    return one_of(
        op("Div", centred, std),
        op("Mul", centred, inverted),
        op("Mul", centred, op("Mul", inverted, scale)),
        op("Mul", op("Mul", centred, scale), inverted),
        op("Div", op("Mul", centred, scale), std),
        *_as_batchnorm(x, any_average, one_of(op("Mul", inverted, scale), inverted)),
    )


def _as_batchnorm(x: Pattern, average: Pattern, gain: Pattern) -> tuple[Pattern, ...]:
    """x·g + (β − mean·g), as tf.nn.batch_normalization writes it with and without β."""
    scaled, shift = op("Mul", x, gain), op("Mul", average, gain)
    return (
        op("Add", scaled, op("Sub", const("bias"), shift)),
        op("Add", scaled, op("Neg", shift)),
        op("Add", scaled, op("Mul", gain, op("Neg", average))),
        op("Sub", scaled, shift),
    )


@dataclass(frozen=True)
class _Norm:
    """A matched LayerNorm: the nodes it takes up, and what is to be written for them.

    Attributes:
        match: the chain, with what scales and shifts it behind.
        count: number of normalized axes.
        shape: their sizes, where they are known.
        arrays: scale and bias, as far as there are any.
    """

    match: Match
    count: int
    shape: Shape | None
    arrays: Mapping[str, np.ndarray]

    @property
    def x(self) -> gs.Tensor:
        return self.match.tensors["x"]

    def with_array(self, name: str, array: np.ndarray, match: Match) -> _Norm:
        return replace(self, match=match, shape=array.shape, arrays={**self.arrays, name: array})


def _from_chain(match: Match, edit: Edit) -> str | None:
    if "outside" in match.named:
        return "epsilon is added outside the square root"
    dtype = type_of(match)
    if dtype != np.float32:
        return f"type {dtype or 'unknown'}; the operator rounds otherwise"
    x = match.tensors["x"]
    means = [match.named[n] for n in ("mean", "mean_again", "variance") if n in match.named]
    count = trailing_axes(means, x, edit.opset)
    if count is None or (x.shape is not None and count == len(x.shape)):
        return "a mean over other axes than the last ones"
    norm = _Norm(match, count, normalized_shape(x, count), {})
    for name in ("scale", "bias"):
        if name in match.tensors:
            array = parameter(match.tensors[name], x, count, norm.shape)
            if array is None:
                return f"a {name} of shape {list(match.tensors[name].shape)}"
            norm = norm.with_array(name, array, match)
    return _write(_with_affine_behind(norm, edit), edit)


def _with_affine_behind(norm: _Norm, edit: Edit) -> _Norm:
    for op_type, name in _AFFINE:
        # Behind a bias that is taken in already, a factor scales that too.
        if name not in norm.arrays and "bias" not in norm.arrays:
            found = behind(norm.match, op_type, (norm.count, norm.shape), edit)
            if found is not None:
                match, array = found
                norm = norm.with_array(name, array, match)
    return norm


def _write(norm: _Norm, edit: Edit) -> str | None:
    if norm.shape is None:
        return "the size of the normalized axis is not known"
    if norm.count > 1 and not norm.arrays:
        # Over an image's height and width that is an instance normalization.
        return "several axes, without a scale or bias of their shape"
    if edit.opset < LAYERNORM_OPSET:
        return _write_chain(norm, edit)
    name = norm.match.root.name
    scale = norm.arrays.get("scale", np.ones(norm.shape, np.float32))
    inputs = [norm.x, edit.constant(f"{name}_scale", scale)]
    if "bias" in norm.arrays:
        inputs.append(edit.constant(f"{name}_bias", norm.arrays["bias"]))
    attrs = {"axis": -norm.count, "epsilon": epsilon_of(norm.match)}
    edit.replace(norm.match, [edit.node("LayerNormalization", inputs, name, attrs)])
    return None


def _write_chain(norm: _Norm, edit: Edit) -> str | None:
    """The chain in one spelling, which the group matches where there is no operator."""
    match, name = norm.match, norm.match.root.name
    axes = {"axes": list(range(-norm.count, 0)), "keepdims": 1}
    if _is_written(norm, axes["axes"]):
        return f"LayerNormalization needs opset {LAYERNORM_OPSET}; the chain stays"
    average = edit.node("ReduceMean", [norm.x], f"{name}_mean", axes)
    centred = edit.node("Sub", [norm.x, *average.outputs], f"{name}_centred")
    two = edit.constant(f"{name}_two", np.array(2, np.float32))
    square = edit.node("Pow", [*centred.outputs, two], f"{name}_squared")
    variance = edit.node("ReduceMean", square.outputs, f"{name}_variance", axes)
    epsilon = edit.constant(f"{name}_epsilon", np.array(epsilon_of(match), np.float32))
    shifted = edit.node("Add", [*variance.outputs, epsilon], f"{name}_shifted")
    std = edit.node("Sqrt", shifted.outputs, f"{name}_std")
    nodes = [average, centred, square, variance, shifted, std]
    nodes.append(edit.node("Div", [*centred.outputs, *std.outputs], name))
    for op_type, parameter_name in _AFFINE:
        if parameter_name in norm.arrays:
            stored = edit.constant(f"{name}_{parameter_name}", norm.arrays[parameter_name])
            nodes.append(edit.node(op_type, [*nodes[-1].outputs, stored], name))
    edit.replace(match, nodes)
    return None


def _is_written(norm: _Norm, axes: object) -> bool:
    """Whether the chain has that spelling already."""
    affine = [op_type for op_type, name in _AFFINE if name in norm.arrays]
    same = sorted((*_CHAIN, *affine)) == sorted(node.op for node in norm.match.nodes)
    means = [node for node in norm.match.nodes if node.op == "ReduceMean"]
    divided = [producer(node.inputs[0]) for node in norm.match.nodes if node.op == "Div"]
    plain = all(node is not None and node.op == "Sub" for node in divided)
    return same and plain and all(node.attrs["axes"] == axes for node in means)


def _fold_affine(match: Match, edit: Edit) -> str | None:
    layer, x, scale = match.named["layer"], match.tensors["x"], match.tensors["scale"]
    array = parameter(match.tensors["c"], x, len(scale.shape), tuple(scale.shape))
    if array is None:
        return f"a constant of shape {list(match.tensors['c'].shape)}"
    bias = match.tensors.get("bias")
    old = values(scale)
    if old.dtype != array.dtype or (bias is not None and values(bias).shape != old.shape):
        return "a scale and a bias of different types or shapes"
    if match.root.op == "Mul":
        layer.inputs[1] = edit.stored(scale, old * array)
        if bias is not None:
            layer.inputs[2] = edit.stored(bias, values(bias) * array)
    elif bias is not None:
        layer.inputs[2] = edit.stored(bias, values(bias) + array)
    else:
        while len(layer.inputs) > 2:
            layer.inputs.pop()
        layer.inputs.append(edit.constant(f"{layer.name}_bias", array))
    edit.replace(match, [layer])
    return None


_LAYER = op("LayerNormalization", var("x"), const("scale"), optional(const("bias")), name="layer")

RULES = (
    Rule(
        "LayerNormChain",
        "(x − mean(x)) / √(var(x) + ε) · γ + β → LayerNormalization(x, γ, β)",
        layer_norm_chain(var("x")),
        _from_chain,
    ),
    # LayerNorm without parameters, followed by its own; PyTorch writes ones for the scale.
    Rule(
        "LayerNormAffine",
        "LayerNorm(x, γ, β)·c → LayerNorm(x, γ·c, β·c), and Add alike",
        op("Mul|Add", _LAYER, const("c")),
        _fold_affine,
    ),
)
