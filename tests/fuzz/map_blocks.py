"""Blocks on maps, lines and volumes: [batch, channels, space…]."""

from __future__ import annotations

from typing import Any

import numpy as np
from growing import FAR, MAP, TOKENS, Grower, Value
from norms_and_acts import activation, map_norm
from spelling import ACTS, BLOCKS


def _halved(value: Value, name: str, channels: int) -> Value:
    space = tuple(-(-n // 2) for n in value.size[2:])
    return value.but(name, size=(value.size[0], channels, *space))


def spelled(g: Grower) -> None:
    """One of the blocks of `Speller`."""
    value = g.value
    g.x, g.channels = value.name, value.channels
    kind = g.draw.choice(BLOCKS)
    g.block(
        kind,
        g.draw.choice(ACTS),
        g.draw.choice([2, 3]) if kind == "branches" else g.draw.choice([4, 8]),
    )
    g.set(value.but(g.x, size=(value.size[0], g.channels, *value.size[2:])))


def conv(g: Grower) -> None:
    """Convolution of any rank, group, stride and dilation, with or without norm and activation."""
    value, net = g.value, g.net
    rank, into = len(value.size) - 2, value.channels
    group = g.draw.choice([1, 1, 1, 2, 4, into])
    group = group if into % group == 0 else 1
    out = group * g.draw.choice([1, 2, 4]) if group > 1 else g.draw.choice([3, 4, 8, 16])
    kernel, dilation = g.draw.choice([1, 3, 3, 5]), g.draw.choice([1, 1, 1, 2])
    stride = 2 if g.chance(5) and min(value.size[2:]) >= 4 else 1
    attrs: dict[str, Any] = {"group": group, "strides": [stride] * rank}
    if dilation > 1:
        attrs["dilations"] = [dilation] * rank
    if g.chance(6) and dilation == 1:
        attrs["auto_pad"] = g.draw.choice(["SAME_UPPER", "SAME_LOWER"])
    else:
        attrs["pads"] = [dilation * (kernel // 2)] * 2 * rank
    if g.chance(2):
        attrs["kernel_shape"] = [kernel] * rank
    bias = [net.draw(out, name="b")] if g.chance(2) else []
    weight = g.weight(out, into // group, *[kernel] * rank)
    y = g.op("Conv", value.name, weight, *bias, **attrs)
    made = _halved(value, y, out) if stride == 2 else value.resized(y, 1, out)
    if g.chance(2):
        made = made.but(net.batchnorm(made.name, out))
    if g.chance(2):
        made = made.but(activation(g, made))
    g.set(made)


def residual(g: Grower) -> None:
    """Adds an earlier value of the same shape, or one brought to it by a 1x1 convolution."""
    other = g.like(g.value)
    value = g.value
    if other is None:
        rank = len(value.size) - 2
        w = g.weight(value.channels, value.channels, *[1] * rank)
        other = value.but(g.op("Conv", value.name, w))
    y = g.add(value.name, other.name)
    g.set(value.but(activation(g, value.but(y)) if g.chance(2) else y))


def deconv(g: Grower) -> None:
    """ConvTranspose that keeps the size or doubles it."""
    value, into = g.value, g.value.channels
    rank = len(value.size) - 2
    group = g.draw.choice([1, 1, 2, into])
    group = group if into % group == 0 else 1
    each = g.draw.choice([1, 2, 4])
    stride = g.draw.choice([1, 2]) if max(value.size[2:]) <= 12 else 1
    attrs: dict[str, Any] = {"group": group, "strides": [stride] * rank}
    kernel = 3 if stride == 1 else g.draw.choice([2, 3, 4])
    pad = {2: 0, 3: 1, 4: 1}[kernel]
    attrs["pads"] = [pad] * 2 * rank
    if (kernel, stride) == (3, 2):
        attrs["output_padding"] = [1] * rank
    bias = [g.net.draw(group * each, name="b")] if g.chance(2) else []
    y = g.op("ConvTranspose", value.name, g.weight(into, each, *[kernel] * rank), *bias, **attrs)
    size = (value.size[0], group * each, *(n * stride for n in value.size[2:]))
    made = value.but(y, size=size)
    g.set(made.but(activation(g, made)) if g.chance(2) else made)


def pool(g: Grower) -> None:
    """Max, average and power pooling; padding by an operator of its own, with −inf or zeros."""
    value, rank = g.value, len(g.value.size) - 2
    halve = min(value.size[2:]) >= 4 and g.chance(2)
    attrs: dict[str, Any] = {"kernel_shape": [3] * rank, "strides": [2 if halve else 1] * rank}
    x, way = value.name, g.pick(5)
    if way == 0:
        low = g.draw.choice([-np.inf, -1e9, float(np.finfo(np.float32).min), 0.0])
        x = g.op("Pad", x, [0, 0, *[1] * rank] * 2, np.float32(low))
        y = g.op("MaxPool", x, **attrs)
    else:
        op = ("MaxPool", "MaxPool", "AveragePool", "AveragePool")[way - 1]
        attrs["pads"] = [1] * 2 * rank
        if op == "AveragePool" and g.chance(2):
            attrs["count_include_pad"] = 1
        y = g.op(op, x, **attrs)
    g.set(_halved(value, y, value.channels) if halve else value.but(y))


def norm(g: Grower) -> None:
    g.set(g.value.but(map_norm(g, g.value)))


def act(g: Grower) -> None:
    g.set(g.value.but(activation(g, g.value)))


def concat(g: Grower) -> None:
    """Concat over channels: nested, of one tensor twice, of branches of unlike range."""
    value = g.value
    parts = [value.name]
    for _ in range(g.draw.choice([1, 2])):
        way = g.pick(4)
        if way == 0:
            parts.append(value.name)
        elif way == 1:
            parts.append(g.op("Mul", value.name, g.number(g.draw.choice([0.02, 5.0, 40.0]))))
        elif way == 2:
            parts.append(activation(g, value))
        else:
            other = g.like(value)
            parts.append(value.name if other is None else other.name)
    g.draw.shuffle(parts)
    axis, total = value.channel_axis, value.channels * len(parts)
    if len(parts) == 3 and g.chance(2):
        parts = [g.op("Concat", *parts[:2], axis=axis), parts[2]]
    y = g.op("Concat", *parts, axis=g.draw.choice([axis, axis - len(value.size)]))
    g.set(value.resized(y, axis, total))


def resize(g: Grower) -> None:
    """Resize of a map by scales or sizes, up or down, in the forms that opsets have."""
    value = g.value
    factor = 2 if max(value.size[2:]) <= 8 else 1
    space = tuple(n * factor for n in value.size[2:])
    mode = g.draw.choice(["nearest", "linear"])
    attrs: dict[str, Any] = {"mode": mode}
    attrs["coordinate_transformation_mode"] = g.draw.choice(
        ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    )
    if mode == "nearest":
        attrs["nearest_mode"] = g.draw.choice(["floor", "round_prefer_floor"])
    scales = np.array([1, 1, *[factor] * len(space)], np.float32)
    roi: Any = None if g.net.opset >= 13 and g.chance(2) else np.array([], np.float32)
    if g.chance(2):
        y = g.op("Resize", value.name, roi, scales, **attrs)
    elif value.is_static and not value.open:
        sizes = np.array([*value.size[:2], *space], np.int64)
        y = g.op(
            "Resize",
            value.name,
            roi,
            None if roi is None else np.array([], np.float32),
            sizes,
            **attrs,
        )
    else:
        shape = g.op("Shape", value.name)
        sizes = g.op("Mul", shape, np.array([1, 1, *[factor] * len(space)], np.int64))
        y = g.op(
            "Resize",
            value.name,
            roi,
            None if roi is None else np.array([], np.float32),
            sizes,
            **attrs,
        )
    g.set(value.but(y, size=(*value.size[:2], *space)))


def shuffle(g: Grower) -> None:
    """Channel shuffle, pixel shuffle or unshuffle, patches."""
    value = g.value
    n, c, h, w = value.size
    way = g.pick(4)
    if way == 0 and c % 2 == 0:
        mid = g.reshape(value, [(0,), 2, c // 2, (2,), (3,)], "")
        turned = mid.but(g.transpose(mid.name, [0, 2, 1, 3, 4]))
        opened = frozenset(i - (i > 1) for i in turned.open)
        back = g.op("Reshape", turned.name, g.op("Shape", value.name)) if g.chance(2) else None
        name = back or g.reshape(turned, [(0,), c, (3,), (4,)], MAP).name
        g.set(Value(name, MAP, value.size, opened))
    elif way == 1 and c % 4 == 0 and max(h, w) <= 8:
        mode = g.draw.choice(["DCR", "CRD"])
        y = g.op("DepthToSpace", value.name, blocksize=2, mode=mode)
        g.set(value.but(y, size=(n, c // 4, h * 2, w * 2)))
    elif way == 2 and h % 2 == w % 2 == 0 and c <= 8:
        y = g.op("SpaceToDepth", value.name, blocksize=2)
        g.set(value.but(y, size=(n, c * 4, h // 2, w // 2)))
    elif h % 2 == w % 2 == 0 and c <= 8:
        quarters = [
            g.slice(g.slice(value.name, 2, a, FAR, 2), 3, b, FAR, 2) for a in (0, 1) for b in (0, 1)
        ]
        y = g.op("Concat", *quarters, axis=1)
        g.set(value.but(y, size=(n, c * 4, h // 2, w // 2)))


def to_tokens(g: Grower) -> None:
    """[batch, channels, space…] to [batch, length, width]."""
    value = g.value
    space = tuple(range(2, len(value.size)))
    flat = g.reshape(value, [(0,), value.channels, space], "")
    opened = frozenset({0} & flat.open) | ({1} if 2 in flat.open else set())
    n, c, length = flat.size
    g.set(Value(g.transpose(flat.name, [0, 2, 1]), TOKENS, (n, length, c), frozenset(opened)))


def pad_map(g: Grower) -> None:
    """Constant, reflected or repeated borders, cut off again or kept."""
    value, rank = g.value, len(g.value.size) - 2
    mode = g.draw.choice(["constant", "reflect", "edge"])
    mode = "constant" if min(value.size[2:]) < 2 else mode
    y = g.op("Pad", value.name, [0, 0, *[1] * rank] * 2, mode=mode)
    if g.chance(2):
        w = g.weight(value.channels, value.channels, *[3] * rank)
        g.set(value.but(g.op("Conv", y, w)))
    else:
        g.set(value.but(y, size=(*value.size[:2], *(n + 2 for n in value.size[2:]))))
