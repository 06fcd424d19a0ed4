"""How a graph begins and how it ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from growing import LINE, MAP, ROW, TOKENS, VOLUME, Grower, Value

SAMPLES = 8
# Sizes that an open axis takes, by its name.
OPEN = {"batch": (1, 2, 3), "height": (8, 12, 4), "width": (8, 4, 12), "length": (6, 9, 4, 14)}


def _input(
    g: Grower, name: str, shape: list[int], opened: dict[int, str], **more: Any
) -> frozenset[int]:
    """Declares an input whose axes in `opened` are open, and draws their sizes."""
    declared: list[int | str] = list(shape)
    for axis, kind in opened.items():
        symbol = kind if kind == "batch" else f"{kind}_of_{name}"
        if symbol not in g.sizes:
            g.sizes[symbol] = [shape[axis], *g.draw.choices(OPEN[kind], k=2 * SAMPLES - 1)]
        declared[axis] = symbol
    g.net.input(name, *declared, **more)
    return frozenset(opened)


def _opened(g: Grower, batch: int, *space: tuple[int, str]) -> dict[int, str]:
    way = g.pick(3)
    opened = {batch: "batch"} if way else {}
    return opened | dict(space) if way == 2 else opened


def image(g: Grower) -> None:
    opened = _opened(g, 0, (2, "height"), (3, "width"))
    shape = [g.draw.choice([1, 2]) if not opened else 2, g.draw.choice([3, 4]), 8, 8]
    found = _input(g, "x", shape, opened)
    g.value = Value("x", MAP, tuple(shape), found)


def channels_last(g: Grower) -> None:
    shape = [1, 8, 8, 4]
    found = _input(g, "x", shape, _opened(g, 0))
    g.value = Value(g.transpose("x", [0, 3, 1, 2]), MAP, (1, 4, 8, 8), found)


def bytes_image(g: Grower) -> None:
    """Pixels of 8 bits, normalized in the graph."""
    shape = [1, 3, 8, 8]
    found = _input(g, "x", shape, _opened(g, 0), dtype=np.uint8)
    g.whole["x"] = (0, 256)
    y = g.op("Div", g.op("Cast", "x", to=1), g.number(255.0))
    mean, deviation = (np.full((3, 1, 1), v, np.float32) for v in (0.45, 0.22))
    g.value = Value(g.op("Div", g.op("Sub", y, mean), deviation), MAP, tuple(shape), found)


def wave(g: Grower) -> None:
    shape = [2, g.draw.choice([1, 4]), 16]
    found = _input(g, "x", shape, _opened(g, 0))
    g.value = Value("x", LINE, tuple(shape), found)


def volume(g: Grower) -> None:
    shape = [1, 3, 4, 4, 4]
    g.value = Value("x", VOLUME, tuple(shape), _input(g, "x", shape, _opened(g, 0)))


def tokens(g: Grower) -> None:
    shape = [2, 6, g.draw.choice([16, 32])]
    g.value = Value("x", TOKENS, tuple(shape), _input(g, "x", shape, _opened(g, 0, (1, "length"))))


def two_streams(g: Grower) -> None:
    """Tokens and a memory to attend to."""
    width = g.draw.choice([16, 32])
    opened = _opened(g, 0)
    found = _input(g, "memory", [2, 7, width], opened)
    memory = Value("memory", TOKENS, (2, 7, width), found)
    found = _input(g, "x", [2, 5, width], opened)
    g.value = memory
    g.set(Value("x", TOKENS, (2, 5, width), found))


def ids(g: Grower) -> None:
    """Token numbers through an embedding, which a tail may tie."""
    width, count = g.draw.choice([16, 32]), 24
    dtype = g.draw.choice([np.int64, np.int32])
    found = _input(g, "x", [2, 6], _opened(g, 0, (1, "length")), dtype=dtype)
    g.whole["x"] = (0, count)
    g.table = g.net.draw(count, width, name="embedding")
    y = g.op("Gather", g.table, "x", axis=0)
    g.value = Value(y, TOKENS, (2, 6, width), found)


def row(g: Grower) -> None:
    shape = [2, g.draw.choice([5, 8, 16])]
    g.value = Value("x", ROW, tuple(shape), _input(g, "x", shape, _opened(g, 0)))


def with_temperature(g: Grower) -> None:
    """A second input of rank 0 or 1 that scales the first."""
    row(g)
    g.net.input("temperature", *g.draw.choice([(), (1,)]))
    g.set(g.value.but(g.op("Mul", g.value.name, g.op("Sigmoid", "temperature"))))


STEMS = {
    stem.__name__: stem
    for stem in (
        image, image, channels_last, bytes_image, wave, volume, tokens, two_streams, ids, row,
        with_temperature,
    )
}  # fmt: skip


def plain_end(g: Grower) -> None:
    g.outputs.append(g.op("Tanh", g.value.name) if g.chance(4) else g.value.name)


def classes(g: Grower) -> None:
    """Softmax or its logarithm over channels; maybe the largest as well."""
    value = g.value
    op = g.draw.choice(["Softmax", "LogSoftmax", "Sigmoid"])
    attrs = {} if op == "Sigmoid" else {"axis": value.channel_axis}
    if op != "Sigmoid" and g.net.opset < 13:
        attrs = {"axis": len(value.size) - 1}
    y = g.op(op, value.name, **attrs)
    g.outputs.append(y)
    if g.chance(3):
        best = g.op("ArgMax", y, axis=value.channel_axis, keepdims=0)
        g.rough.add(best)
        g.outputs.append(best)


def best_few(g: Grower) -> None:
    """TopK of the last axis: values and indices."""
    axis = len(g.value.size) - 1
    if g.value.size[axis] < 2:
        return plain_end(g)
    values, indices = g.net.op("TopK", g.value.name, [2], outputs=2, axis=axis)
    g.rough |= {values, indices}
    g.outputs += [values, indices]
    return None


def boxes(g: Grower) -> None:
    """Boxes and scores from tokens, through NonMaxSuppression."""
    value = g.value
    if value.layout != TOKENS or value.open:
        return plain_end(g)
    width = value.channels
    places = g.op("Sigmoid", g.dense(value.name, width, 4))
    scores = g.op("Sigmoid", g.dense(value.name, width, 3))
    corner, extent = g.split(places, [2, 2], 2)
    places = g.op("Concat", corner, g.op("Add", corner, extent), axis=2)
    limits = [np.array([3], np.int64)] + [np.array([v], np.float32) for v in (0.5, 0.1)]
    chosen = g.op("NonMaxSuppression", places, g.transpose(scores, [0, 2, 1]), *limits)
    g.rough.add(chosen)
    g.outputs += [chosen, scores]
    return None


def tied(g: Grower) -> None:
    """Logits by the embedding's own table."""
    table = g.table
    if not table or g.value.layout != TOKENS or g.value.channels != g.net.stored[table].shape[1]:
        return plain_end(g)
    if g.chance(2):
        g.outputs.append(g.op("MatMul", g.value.name, g.transpose(table, [1, 0])))
    else:
        flat = g.op("Reshape", g.value.name, [-1, g.value.channels])
        g.outputs.append(g.op("Gemm", flat, table, transB=1))
    return None


TAILS = {tail.__name__: tail for tail in (plain_end, classes, best_few, boxes, tied)}
