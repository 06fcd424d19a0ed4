"""Attention: self and cross, grouped queries, masks and biases, rotary positions, windows."""

from __future__ import annotations

from typing import Any

import numpy as np
from growing import TOKENS, Grower, Value
from norms_and_acts import layer_norm
from windows import Block, cut, merge, pad, roll, unpad

LOW = (-1e9, -1e4, float(np.finfo(np.float32).min), -np.inf)


def heads_of(g: Grower, value: Value, heads: int, size: int) -> Value:
    """[batch, length, heads·size] to [batch, heads, length, size]."""
    cutting: list[Any] = [(0,), (1,), heads, size]
    y = g.reshape(value, cutting, "")
    turned = g.transpose(y.name, [0, 2, 1, 3])
    opened = frozenset({0} & y.open) | ({2} if 1 in y.open else set())
    return Value(turned, "", (y.size[0], heads, y.size[1], size), frozenset(opened))


def attention(g: Grower) -> None:
    """Softmax(scale·q·kᵀ + masks)·v between two Linears, added to the stream or not."""
    value, width = g.value, g.value.channels
    size = g.draw.choice([8, 16, 32])
    heads = g.draw.choice([1, 2])
    x = value.but(layer_norm(g, value.name, width)) if g.chance(2) else value
    memory = _memory(g, x)
    q, k, v = _projected(g, x, memory, heads, size)
    if g.chance(4):
        q, k = (rotated(g, o) for o in (q, k))
    y = _core(g, q, k, v)
    merged = g.transpose(y.name, [0, 2, 1, 3])
    opened = frozenset({0} & y.open) | ({1} if 2 in y.open else set())
    flat = Value(merged, "", (y.size[0], y.size[2], heads, size), opened)
    flat = g.reshape(flat, [(0,), (1,), heads * size], TOKENS)
    out = flat.but(g.dense(flat.name, heads * size, width), size=(*flat.size[:2], width))
    g.set(value.but(g.add(value.name, out.name)) if g.chance(2) else out)


def _memory(g: Grower, x: Value) -> Value:
    others = [v for v in g.kept if v.layout == TOKENS and v.size[0] == x.size[0]]
    others = [v for v in others if not (v.open | x.open) - {0}]
    return g.draw.choice(others) if others and g.chance(3) else x


def _projected(
    g: Grower, x: Value, memory: Value, heads: int, size: int
) -> tuple[Value, Value, Value]:
    """q, k and v from one packed Linear, three, or grouped ones; or one tensor thrice."""
    width, way = heads * size, g.pick(6)
    if way == 0:
        y = x.resized(g.dense(x.name, x.channels, width), 2, width)
        one = heads_of(g, y, heads, size)
        return one, one, one
    if way == 1 and memory is x:
        y = g.dense(x.name, x.channels, 3 * width)
        parts = g.split(y, [width] * 3, 2)
        return tuple(heads_of(g, x.resized(p, 2, width), heads, size) for p in parts)
    few = 1 if way == 2 else heads
    bias = not g.chance(3)
    q = x.resized(g.dense(x.name, x.channels, width, bias), 2, width)
    k, v = (
        memory.resized(g.dense(memory.name, memory.channels, few * size, bias), 2, few * size)
        for _ in range(2)
    )
    found = [heads_of(g, q, heads, size), *(heads_of(g, o, few, size) for o in (k, v))]
    if few < heads:
        found[1:] = [_repeated(g, o, heads) for o in found[1:]]
    return found[0], found[1], found[2]


def _repeated(g: Grower, o: Value, heads: int) -> Value:
    """One head of keys for all queries, as transformers repeats it."""
    if g.chance(3):
        return o.but(o.name)  # broadcast by MatMul
    if g.chance(2):
        y = g.op("Concat", *[o.name] * heads, axis=1)
    else:
        y = g.op("Tile", o.name, [1, heads, 1, 1])
    return o.resized(y, 1, heads)


def rotated(g: Grower, o: Value) -> Value:
    """Rotary positions: x·cos + (−x₂, x₁)·sin, from tables or computed from positions."""
    size, length = o.size[3], o.size[2]
    half = size // 2
    inverse = (10000.0 ** (-np.arange(half) / half)).astype(np.float32)
    if 2 in o.open or g.chance(2):
        count = g.squeeze(g.dim(o.name, 2), [0])
        positions = g.op("Range", np.int64(0), count, np.int64(1))
        positions = g.unsqueeze(g.op("Cast", positions, to=1), [1])
        angles = (
            g.op("MatMul", positions, inverse.reshape(1, half))
            if g.chance(2)
            else g.op("Mul", positions, inverse)
        )
        angles = g.op("Concat", angles, angles, axis=1)
        cos, sin = g.op("Cos", angles), g.op("Sin", angles)
    else:
        table = np.tile(np.arange(length)[:, None] * inverse, 2).astype(np.float32)
        cos, sin = np.cos(table), np.sin(table)  # type: ignore[assignment]
    if g.net.opset >= 23 and 2 not in o.open and g.chance(3):
        tables = [
            (f(np.arange(length)[:, None] * inverse)).astype(np.float32) for f in (np.cos, np.sin)
        ]
        tables = [np.repeat(t[None], o.size[0], 0) for t in tables]
        return o if 0 in o.open else o.but(g.net.op("RotaryEmbedding", o.name, *tables))
    first, second = g.split(o.name, [half, half], 3)
    turned = g.op("Concat", g.op("Neg", second), first, axis=3)
    return o.but(g.op("Add", g.op("Mul", o.name, cos), g.op("Mul", turned, sin)))


def _core(g: Grower, q: Value, k: Value, v: Value) -> Value:
    scale = float(q.size[3]) ** -0.5
    if g.net.opset >= 23 and g.chance(2):
        return q.but(_operator(g, q, k, v, scale))
    a, b, way = q.name, k.name, g.pick(4)
    if way == 0:
        a = g.op("Mul", a, g.number(scale))
    elif way == 1:
        a, b = (g.op("Mul", o, g.number(scale**0.5)) for o in (a, b))
    if g.net.opset >= 12 and g.chance(5):
        scores = g.op("Einsum", a, b, equation="bhqd,bhkd->bhqk")
    else:
        scores = g.op("MatMul", a, g.transpose(b, [0, 1, 3, 2]))
    if way == 2:
        scores = g.op("Div", scores, g.number(1 / scale))
    elif way == 3:
        scores = g.op("Mul", scores, g.number(scale))
    weights = g.op("Softmax", _masked(g, scores, q, k), axis=g.draw.choice([-1, 3]))
    return q.but(g.op("MatMul", weights, v.name))


def _operator(g: Grower, q: Value, k: Value, v: Value, scale: float) -> str:
    """ONNX's own Attention, with a mask, its causal flag, or neither."""
    more: dict[str, Any] = {"scale": scale} if g.chance(2) else {}
    mask, way = [], g.pick(4)
    if way == 0 and 2 not in q.open | k.open:
        kept = g.net.random.random((q.size[2], k.size[2])) < 0.7
        kept[:, 0] = True
        mask = [kept if g.chance(2) else np.where(kept, 0, -1e4).astype(np.float32)]
    elif way == 1:
        more["is_causal"] = 1
    if g.chance(6):
        more["softcap"] = 20.0
    y: str = g.net.op("Attention", q.name, k.name, v.name, *mask, **more)
    return y


def _masked(g: Grower, scores: str, q: Value, k: Value) -> str:
    if 2 in q.open | k.open:
        return scores
    rows, columns, way = q.size[2], k.size[2], g.pick(6)
    shape = (1, q.size[1] if g.chance(2) else 1, rows, columns)
    kept = g.net.random.random(shape) < 0.7
    kept[..., 0] = True
    low = np.float32(g.draw.choice(LOW))
    if way == 0:
        return g.op("Add", scores, np.where(kept, 0, low).astype(np.float32))
    if way == 1:
        return g.op("Where", kept, scores, low)
    if way == 2:
        return g.op("Add", scores, g.net.stored[g.net.draw(*shape)] * np.float32(3))
    if way == 3:
        causal = np.tri(rows, columns, dtype=bool).reshape(1, 1, rows, columns)
        return g.op("Add", scores, np.where(causal, 0, low).astype(np.float32))
    if way == 4 and g.net.opset >= 14:
        causal = g.op("Trilu", np.ones((rows, columns), np.float32), np.int64(1), upper=1)
        return g.op("Add", scores, g.op("Mul", causal, g.number(-1e4)))
    return scores


def window_attention(g: Grower) -> None:
    """Attention in windows of a map, shifted or not, padded where they do not fit."""
    value = g.value
    n, c, h, w = value.size
    if not value.is_static:
        return
    rows, columns = g.draw.choice([2, 3, 4]), g.draw.choice([2, 4])
    shift = g.draw.choice([(0, 0), (1, 1)])
    block = Block((h, w), (rows, columns), shift, rolled_first=g.chance(2), width=c)
    y = g.transpose(value.name, [0, 2, 3, 1])
    parts = [roll, pad] if block.rolled_first else [pad, roll]
    for part in parts:
        y = roll(g.net, y, shift) if part is roll else pad(g.net, y, block)
    y = cut(g.net, y, block)
    heads, size = 1, 16
    tokens = Value(y, TOKENS, (n * block.count, block.tokens, c), value.open)
    q, k, v = _projected(g, tokens, tokens, heads, size)
    y = g.transpose(_core(g, q, k, v).name, [0, 2, 1, 3])
    y = g.dense(g.op("Reshape", y, [-1, block.tokens, size]), size, c)
    y = merge(g.net, y, block)
    back = (-shift[0], -shift[1])
    y = (
        roll(g.net, unpad(g.net, y, block), back)
        if block.rolled_first
        else unpad(g.net, roll(g.net, y, back), block)
    )
    y = g.transpose(y, [0, 3, 1, 2])
    g.set(value.but(g.add(value.name, y)))
