"""RMSNorm in one form: the operator from opset 23 on, before it one spelling of the chain.

    RMSNorm(x) = x · 1/√(mean(x²) + ε) · γ   over the last axes

LLaMA, T5, Gemma and torch.nn.RMSNorm, whose exporters write the root's inverse in three ways.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import is_constant, producer, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import Pattern, const, one_of, op, var
from fusewright.normalize.affine import behind, normalized_shape, parameter
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

RMSNORM_OPSET = 23
# From here on the axes of a reduction are an input.
_AXES_INPUT_OPSET = 18
_CHAIN = ("Add", "Mul", "Pow", "ReduceMean", "Reciprocal", "Sqrt")


def _chain() -> Pattern:
    x, scale = var("x"), const("scale")
    average = mean(squared(x), "mean")
    std = deviation(average)
    inverted = inverse(std, average)
    return one_of(
        op("Mul", x, inverted), op("Div", x, std), op("Mul", x, op("Mul", inverted, scale))
    )


def _from_chain(match: Match, edit: Edit) -> str | None:
    if "outside" in match.named:
        return "epsilon is added outside the square root"
    x = match.tensors["x"]
    if subtracts_mean(x):
        return "a mean is subtracted in front: a LayerNorm"
    dtype = type_of(match)
    if dtype != np.float32:
        return f"type {dtype or 'unknown'}; the operator rounds otherwise"
    count = trailing_axes([match.named["mean"]], x, edit.opset)
    if count is None or (x.shape is not None and count == len(x.shape)):
        return "a mean over other axes than the last ones"
    over = count, normalized_shape(x, count)
    scale = None
    if "scale" in match.tensors:
        scale = parameter(match.tensors["scale"], x, *over)
        if scale is None:
            return f"a scale of shape {list(match.tensors['scale'].shape)}"
    elif (found := behind(match, "Mul", over, edit)) is not None:
        match, scale = found
    if edit.opset < RMSNORM_OPSET:
        return _write_chain(match, edit, scale, count)
    if scale is None and over[1] is None:
        return "the size of the normalized axis is not known"
    name = match.root.name
    stored = np.ones(over[1] or (), np.float32) if scale is None else scale
    inputs = [x, edit.constant(f"{name}_scale", stored)]
    attrs = {"axis": -count, "epsilon": epsilon_of(match)}
    edit.replace(match, [edit.node("RMSNormalization", inputs, name, attrs)])
    return None


def subtracts_mean(x: gs.Tensor) -> bool:
    """Whether x is v − mean(v)."""
    node = producer(x)
    if node is None or node.op != "Sub":
        return False
    average = producer(node.inputs[1])
    return (
        average is not None and average.op == "ReduceMean" and average.inputs[0] is node.inputs[0]
    )


def _write_chain(match: Match, edit: Edit, scale: np.ndarray | None, count: int) -> str | None:
    """The spelling of PyTorch's dynamo exporter, which the group matches."""
    axes = list(range(-count, 0))
    if _is_written(match, axes, edit, scaled=scale is not None):
        return f"RMSNormalization needs opset {RMSNORM_OPSET}; the chain stays"
    name, x = match.root.name, match.tensors["x"]
    two = edit.constant(f"{name}_two", np.array(2, np.float32))
    square = edit.node("Pow", [x, two], f"{name}_squared")
    inputs, attrs = [*square.outputs], dict[str, Any](keepdims=1)
    if edit.opset < _AXES_INPUT_OPSET:
        attrs["axes"] = axes
    else:
        inputs.append(edit.constant(f"{name}_axes", np.array(axes, np.int64)))
    average = edit.node("ReduceMean", inputs, f"{name}_mean", attrs)
    epsilon = edit.constant(f"{name}_epsilon", np.array(epsilon_of(match), np.float32))
    shifted = edit.node("Add", [*average.outputs, epsilon], f"{name}_shifted")
    std = edit.node("Sqrt", shifted.outputs, f"{name}_std")
    inverted = edit.node("Reciprocal", std.outputs, f"{name}_inverse")
    nodes = [square, average, shifted, std, inverted]
    nodes.append(edit.node("Mul", [x, *inverted.outputs], f"{name}_normal"))
    if scale is not None:
        stored = edit.constant(f"{name}_scale", scale)
        nodes.append(edit.node("Mul", [*nodes[-1].outputs, stored], name))
    edit.replace(match, nodes)
    return None


def _is_written(match: Match, axes: list[int], edit: Edit, *, scaled: bool) -> bool:
    """Whether the chain has that spelling already."""
    chain = sorted((*_CHAIN, "Mul") if scaled else _CHAIN)
    if sorted(node.op for node in match.nodes) != chain:
        return False
    if scaled and not any(is_constant(t) for t in match.root.inputs):
        return False
    node = match.named["mean"]
    if edit.opset < _AXES_INPUT_OPSET:
        return bool(node.attrs["axes"] == axes)
    return len(node.inputs) > 1 and values(node.inputs[1]).tolist() == axes


RULES = (
    Rule(
        "RMSNormChain",
        "x / √(mean(x²) + ε) · γ → RMSNormalization(x, γ)",
        _chain(),
        _from_chain,
    ),
)
