"""Blocks on tokens, [batch, length, width], and rows, [batch, width]."""

from __future__ import annotations

from typing import Any

import numpy as np
from growing import MAP, ROW, TOKENS, Grower, Value
from norms_and_acts import activation, gelu, layer_norm


def dense(g: Grower) -> None:
    """A Linear with or without activation; of rows also as Gemm, of tokens also as a 1x1 Conv."""
    value, into = g.value, g.value.channels
    out = g.draw.choice([4, 8, 16, 32])
    if value.layout == ROW and g.chance(2):
        y = _gemm(g, value.name, into, out)
    elif value.layout == TOKENS and g.chance(4):
        y = _flat_gemm(g, value, out)
    else:
        y = g.dense(value.name, into, out, not g.chance(3))
    made = value.resized(y, value.channel_axis if value.layout == TOKENS else 1, out)
    g.set(made.but(activation(g, made)) if g.chance(2) else made)


def _gemm(g: Grower, x: str, into: int, out: int) -> str:
    w, attrs = g.net.stored[g.weight(into, out)], {}
    if g.chance(2):
        w, attrs = np.ascontiguousarray(w.T), {"transB": 1}
    if g.chance(5):
        attrs |= {"alpha": 0.5, "beta": 2.0}
    more = [g.net.draw(out, name="b")] if not g.chance(3) else []
    return g.op("Gemm", x, w, *more, **attrs)


def _flat_gemm(g: Grower, value: Value, out: int) -> str:
    """Reshape, Gemm, Reshape: what PyTorch writes of tokens."""
    flat = g.op("Reshape", value.name, [-1, value.channels])
    y = _gemm(g, flat, value.channels, out)
    if 1 in value.open or g.chance(3):
        shape = g.op("Concat", g.dim(value.name, 0), g.dim(value.name, 1), [out], axis=0)
        return g.op("Reshape", y, shape)
    return g.op("Reshape", y, [-1, value.size[1], out])


def mlp(g: Grower) -> None:
    """norm → Linear → GELU → Linear, on a residual."""
    value, width = g.value, g.value.channels
    inner = g.draw.choice([16, 32])
    y = layer_norm(g, value.name, width, plain=g.chance(3)) if g.chance(2) else value.name
    y = gelu(g, g.dense(y, width, inner))
    y = g.dense(y, inner, width)
    g.set(value.but(g.add(value.name, y)))


def gated(g: Grower) -> None:
    """SiLU(gate)·up, from one Linear cut in two or from two."""
    value, width, inner = g.value, g.value.channels, 16
    if g.chance(2):
        y = g.dense(value.name, width, 2 * inner)
        gate, up = g.split(y, [inner, inner], len(value.size) - 1)
    else:
        gate, up = (g.dense(value.name, width, inner, bias=False) for _ in range(2))
    part = g.op("Sigmoid", gate) if g.chance(2) else g.act("silu", gate)
    y = g.dense(g.op("Mul", part, up), inner, width)
    g.set(value.but(g.add(value.name, y) if g.chance(2) else y))


def norm(g: Grower) -> None:
    value = g.value
    g.set(value.but(layer_norm(g, value.name, value.channels, plain=g.chance(3))))


def positions(g: Grower) -> None:
    """A learned or computed position added to each token."""
    value, (_, length, width) = g.value, g.value.size
    if 1 not in value.open and g.chance(2):
        table: Any = g.net.stored[g.net.draw(1, length, width)]
    else:
        count = g.squeeze(g.dim(value.name, 1), [0])
        steps = g.op("Cast", g.op("Range", np.int64(0), count, np.int64(1)), to=1)
        inverse = (100.0 ** (-np.arange(width) / width)).astype(np.float32)
        if g.chance(2):
            angles = g.op("Mul", g.unsqueeze(steps, [1]), inverse)
        else:
            angles = g.op("MatMul", g.unsqueeze(steps, [1]), inverse.reshape(1, width))
        table = g.op(g.draw.choice(["Sin", "Cos"]), angles)
    g.set(value.but(g.op("Add", value.name, table)))


def class_token(g: Grower) -> None:
    """A learned token in front of the others."""
    value = g.value
    token = g.net.stored[g.net.draw(1, 1, value.channels)]
    if 0 in value.open:
        shape = g.op("Concat", g.dim(value.name, 0), [1, value.channels], axis=0)
        token = g.op("Expand", token, shape)
    else:
        token = np.repeat(token, value.size[0], 0)
    g.set(value.resized(g.op("Concat", token, value.name, axis=1), 1, value.size[1] + 1))


def pooled(g: Grower) -> None:
    """Tokens to one row: the mean, the first, the largest, the norm."""
    value, way = g.value, g.pick(5)
    if way == 0:
        y = g.op("Gather", value.name, np.int64(0), axis=1)
    elif way == 1:
        y = g.squeeze(g.slice(value.name, 1, 0, 1), [1])
    else:
        op = g.draw.choice(["ReduceMean", "ReduceMax", "ReduceL2", "ReduceSum", "ReduceLogSumExp"])
        y = g.reduce(op, value.name, [1], keepdims=0)
    size = (value.size[0], value.channels)
    g.set(Value(y, ROW, size, value.open & {0}))


def to_map(g: Grower) -> None:
    """Tokens back to a map, where their number is known."""
    value = g.value
    n, length, width = value.size
    if 1 in value.open or length % 2:
        return
    turned = g.transpose(value.name, [0, 2, 1])
    mid = Value(turned, "", (n, width, length), value.open & {0})
    g.set(g.reshape(mid, [(0,), width, 2, length // 2], MAP))


def mixed(g: Grower) -> None:
    """A Linear over the length, as MLP-Mixer has it."""
    value = g.value
    if 1 in value.open:
        return
    length = value.size[1]
    y = g.transpose(g.dense(g.transpose(value.name, [0, 2, 1]), length, length), [0, 2, 1])
    g.set(value.but(g.add(value.name, y)))


def row_to_map(g: Grower) -> None:
    """[batch, width] to [batch, width, 1, 1], as generators begin."""
    value = g.value
    y = g.unsqueeze(value.name, [2, 3])
    g.set(Value(y, MAP, (*value.size, 1, 1), value.open & {0}))


def map_to_row(g: Grower) -> None:
    """Global pooling or Flatten."""
    value = g.value
    space = list(range(2, len(value.size)))
    n, c = value.size[:2]
    if value.is_static and g.chance(2):
        y = g.op("Flatten", value.name, axis=1)
        c = int(np.prod(value.size[1:]))
    elif g.chance(3):
        y = g.reduce(g.draw.choice(["ReduceMean", "ReduceMax", "ReduceSum"]), value.name, space, 0)
    else:
        op = g.draw.choice(["GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool"])
        y = g.op(op, value.name)
        y = g.op("Flatten", y) if g.chance(2) else g.squeeze(y, space)
    g.set(Value(y, ROW, (n, c), value.open & {0}))
