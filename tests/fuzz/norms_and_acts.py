"""Norms and activations in the chains that exporters write, and as operators."""

from __future__ import annotations

from typing import Any

import numpy as np
from growing import TOKENS, Grower, Value

SIMPLE = (
    "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Selu", "Celu", "Softplus", "Softsign",
    "HardSigmoid", "Abs", "Neg", "Erf", "Sin", "Cos",
)  # fmt: skip


def gelu(g: Grower, x: str) -> str:
    """x·½(1 + erf(x/√2)), its tanh form, its sigmoid form, or the operator."""
    way = g.pick(5)
    if way == 0 and g.net.opset >= 20:
        return g.op("Gelu", x, approximate=g.draw.choice(["none", "tanh"]))
    if way == 1:
        return g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, g.number(1.702))))
    if way == 2:
        cubed = g.op("Pow", x, g.number(3.0)) if g.chance(2) else g.op("Mul", x, g.op("Mul", x, x))
        inner = g.op("Add", x, g.op("Mul", cubed, g.number(0.044715)))
        part = g.op("Tanh", g.op("Mul", inner, g.number(np.sqrt(2 / np.pi))))
    elif g.chance(2):
        part = g.op("Erf", g.op("Div", x, g.number(np.sqrt(2.0))))
    else:
        part = g.op("Erf", g.op("Mul", x, g.number(np.sqrt(0.5))))
    grown = g.op("Add", part, g.number(1.0))
    if g.chance(2):
        return g.op("Mul", g.op("Mul", x, grown), g.number(0.5))
    return g.op("Mul", x, g.op("Mul", grown, g.number(0.5)))


def mish(g: Grower, x: str) -> str:
    if g.net.opset >= 18 and g.chance(2):
        return g.op("Mish", x)
    return g.op("Mul", x, g.op("Tanh", g.op("Softplus", x)))


def activation(g: Grower, value: Value) -> str:
    """Any activation there is."""
    x, way = value.name, g.pick(9)
    if way == 0:
        return gelu(g, x)
    if way == 1:
        return mish(g, x)
    if way == 2:
        return g.act(g.draw.choice(["relu", "relu6", "hardswish", "hardsigmoid", "silu"]), x)
    if way == 3:
        slope = g.net.positive(*([value.channels] if value.layout == TOKENS else _wide(value)))
        return g.op("PRelu", x, slope)
    if way == 4:
        low = g.draw.choice([-1.0, 0.0, None])
        return g.op("Clip", x, low, g.draw.choice([None, 2.0, 6.0]) if low is not None else 3.0)
    if way == 5:
        return g.op("Softmax", x, axis=len(value.size) - 1)
    op = g.draw.choice(SIMPLE)
    attrs = {"alpha": 0.2} if op == "LeakyRelu" and g.chance(2) else {}
    return g.op(op, x, **attrs)


def _wide(value: Value) -> list[int]:
    return [value.channels, *[1] * (len(value.size) - 2)]


def layer_norm(g: Grower, x: str, width: int, plain: bool = False) -> str:
    """(x − μ)/√(σ² + ε)·γ + β over the last axis, or x/√(mean x² + ε)·γ where `plain`."""
    gamma, beta = g.net.positive(width), g.net.draw(width, name="b")
    if not plain and g.net.opset >= 17 and g.chance(2):
        more = [beta] if g.chance(2) else []
        return g.op("LayerNormalization", x, gamma, *more, axis=-1, epsilon=1e-5)
    if plain and g.net.opset >= 23 and g.chance(2):
        return g.op("RMSNormalization", x, gamma, axis=-1)
    centred = x
    if not plain:
        centred = g.op("Sub", x, g.reduce("ReduceMean", x, [-1]))
    squared = g.op("Mul", centred, centred) if g.chance(2) else g.op("Pow", centred, g.number(2.0))
    variance = g.op("Add", g.reduce("ReduceMean", squared, [-1]), g.number(1e-5))
    root = g.op("Sqrt", variance)
    if g.chance(2):
        y = g.op("Div", centred, root)
    else:
        y = g.op("Mul", centred, g.op("Reciprocal", root))
    y = g.op("Mul", y, g.net.stored[gamma])
    return y if plain or g.chance(4) else g.op("Add", y, g.net.stored[beta])


def map_norm(g: Grower, value: Value) -> str:
    """A norm over the channels or the space of [batch, channels, space…]."""
    x, c, rank = value.name, value.channels, len(value.size)
    way = g.pick(6)
    if way == 0:
        return g.op("InstanceNormalization", x, g.net.positive(c), g.net.draw(c), epsilon=1e-5)
    if way == 1 and c % 2 == 0:
        return _group_norm(g, value)
    if way == 2 and rank == 4:
        turned = g.transpose(x, [0, 2, 3, 1])
        return g.transpose(layer_norm(g, turned, c), [0, 3, 1, 2])
    if way == 3 and rank == 4:
        return g.op("LRN", x, size=3)
    if way == 4:
        return g.op("LpNormalization", x, axis=1, p=2)
    return g.net.batchnorm(x, c)


def _group_norm(g: Grower, value: Value) -> str:
    x, c, groups = value.name, value.channels, 2
    gamma, beta = g.net.positive(c), g.net.draw(c, name="b")
    if g.net.opset >= 21 and g.chance(2):
        return g.op("GroupNormalization", x, gamma, beta, num_groups=groups, epsilon=1e-5)
    shape = g.op("Shape", x)
    inner = g.op("Reshape", x, [0, groups, -1])
    ones = [np.ones(groups, np.float32), np.zeros(groups, np.float32)]
    normed = g.op("InstanceNormalization", inner, *ones, epsilon=1e-5)
    y: Any = g.op("Reshape", normed, shape)
    wide = _wide(value)
    y = g.op("Mul", y, g.net.stored[gamma].reshape(wide))
    return g.op("Add", y, g.net.stored[beta].reshape(wide))
