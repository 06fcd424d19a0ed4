"""Blocks that move or combine elements, of any layout; bodies, and what no group claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from growing import FAR, Grower, Value
from onnx import helper


def identity(g: Grower) -> None:
    """Nodes that change nothing."""
    x, way = g.value.name, g.pick(7)
    if way == 0:
        y = g.net.op("Identity", x)
    elif way == 1:
        y = g.net.op("Cast", x, to=1)
    elif way == 2:
        y = g.op("Add", x, g.number(0.0))
    elif way == 3:
        y = g.op("Div", x, g.number(1.0))
    elif way == 4:
        y = g.op("Pad", x, [0] * 2 * len(g.value.size))
    elif way == 5:
        y = g.op("Reshape", x, g.op("Shape", x))
    else:
        y = g.dropout(x)
    g.set(g.value.but(y))


def scale(g: Grower) -> None:
    """Times and plus a number, a vector over channels, or an earlier value."""
    value = g.value
    wide = (
        [value.channels]
        if value.channel_axis == len(value.size) - 1
        else [value.channels, *[1] * (len(value.size) - 2)]
    )
    vector = g.net.stored[g.net.positive(*wide)]
    if g.chance(4):
        vector = vector * np.float32(g.draw.choice([1e-3, 100.0]))
    y = g.op("Mul", value.name, vector if g.chance(2) else g.number(g.draw.uniform(0.5, 2.0)))
    if g.chance(2):
        y = g.op(g.draw.choice(["Add", "Sub"]), y, g.net.stored[g.net.draw(*wide)])
    g.set(value.but(y))


def permuted(g: Grower) -> None:
    """Channels in another order: by Gather, or cut and put together again."""
    value, axis, c = g.value, g.value.channel_axis, g.value.channels
    if c < 2 or g.chance(2):
        order = np.array(g.draw.sample(range(c), c), np.int64)
        y = g.op("Gather", value.name, order, axis=axis)
    else:
        first = g.draw.randrange(1, c)
        a, b = g.split(value.name, [first, c - first], axis)
        y = g.op("Concat", b, a, axis=axis)
    g.set(value.but(y))


def halved(g: Grower) -> None:
    """A part of the channels; another may be an output of the model."""
    value, axis, c = g.value, g.value.channel_axis, g.value.channels
    if c < 4:
        return
    a, b = g.split(value.name, [c // 2, c - c // 2], axis)
    if g.chance(3):
        g.outputs.append(b)
    g.set(value.resized(a, axis, c // 2))


def flipped(g: Grower) -> None:
    """An axis backwards, or rolled by one."""
    value, axis = g.value, len(g.value.size) - 1
    x = value.name
    if g.chance(2):
        y = g.op("Slice", x, [-1], [-FAR], [axis], [-1])
    else:
        y = g.op("Concat", g.slice(x, axis, 1, FAR), g.slice(x, axis, 0, 1), axis=axis)
    g.set(value.but(y))


def turned(g: Grower) -> None:
    """There and back again, with an elementwise operator between or none."""
    value, rank = g.value, len(g.value.size)
    perm = g.draw.sample(range(rank), rank)
    y = g.transpose(value.name, perm)
    if g.chance(2):
        y = g.op(g.draw.choice(["Relu", "Tanh", "Neg"]), y)
    g.set(value.but(g.transpose(y, [perm.index(i) for i in range(rank)])))


def gate(g: Grower) -> None:
    """A sigmoid of itself, a mask by Where, the larger of two, a difference that nearly cancels."""
    value, way = g.value, g.pick(5)
    x = value.name
    if way == 0:
        y = g.op("Mul", x, g.op("Sigmoid", x))
    elif way == 1:
        kept = g.net.random.random((1,) * (len(value.size) - 1) + (1,)) < 2
        y = g.op("Where", kept, x, np.float32(0))
    elif way == 2:
        y = g.op(g.draw.choice(["Max", "Min"]), x, g.op("Neg", x))
    elif way == 3:
        y = g.op("Sub", x, g.reduce("ReduceMean", x, [len(value.size) - 1]))
    else:
        other = g.like(value)
        y = g.op("Add", x, x if other is None else other.name)
    g.set(value.but(y))


def ones(g: Grower) -> None:
    """A constant made of the value's own shape."""
    value = g.value
    number = helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [g.draw.choice([0.0, 1.0])])
    made = g.net.op("ConstantOfShape", g.op("Shape", value.name), value=number)
    g.set(value.but(g.op("Add", value.name, made)))


def observed(g: Grower) -> None:
    """The value is an output of the model as well."""
    g.outputs.append(g.value.name)


def branch(g: Grower) -> None:
    """If, whose branches read the value from outside."""
    value = g.value
    shape = [None] * len(value.size)
    bodies = []
    for op in ("Relu", "Tanh"):
        out = f"{g.net.store(0.0)}_{op}"
        node = helper.make_node(op, [value.name], [out], f"{op}_of_{value.name}")
        info = helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, shape)
        bodies.append(helper.make_graph([node], f"body_{op}", [], [info]))
    total: Any = g.reduce("ReduceSum", value.name, list(range(len(value.size))), keepdims=0)
    condition = g.op("Greater", total, np.float32(-1e9)) if g.chance(2) else np.array(True)
    y = g.net.op("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    g.set(value.but(y))


def loop(g: Grower) -> None:
    """Loop that turns the value twice through Tanh."""
    value = g.value
    tag = g.net.store(0.0)
    shape = [None] * len(value.size)
    info = helper.make_tensor_value_info
    inputs = [
        info(f"{tag}_i", onnx.TensorProto.INT64, []),
        info(f"{tag}_c", onnx.TensorProto.BOOL, []),
        info(f"{tag}_x", onnx.TensorProto.FLOAT, shape),
    ]
    outputs = [
        info(f"{tag}_d", onnx.TensorProto.BOOL, []),
        info(f"{tag}_y", onnx.TensorProto.FLOAT, shape),
    ]
    nodes = [
        helper.make_node("Identity", [f"{tag}_c"], [f"{tag}_d"], f"{tag}_keep"),
        helper.make_node("Tanh", [f"{tag}_x"], [f"{tag}_y"], f"{tag}_tanh"),
    ]
    body = helper.make_graph(nodes, f"{tag}_body", inputs, outputs)
    y = g.net.op("Loop", np.int64(2), np.array(True), value.name, body=body)
    g.set(value.but(y))


def scan(g: Grower) -> None:
    """Scan along the second axis, whose state sums up what went by."""
    value = g.value
    if len(value.size) != 3 or 1 in value.open:
        return
    tag, info, kind = g.net.store(0.0), helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    inputs = [info(f"{tag}_{n}", kind, [None, None]) for n in ("s", "x")]
    outputs = [info(f"{tag}_{n}", kind, [None, None]) for n in ("t", "y")]
    nodes = [
        helper.make_node("Add", [f"{tag}_s", f"{tag}_x"], [f"{tag}_t"], f"{tag}_sum"),
        helper.make_node("Tanh", [f"{tag}_t"], [f"{tag}_y"], f"{tag}_tanh"),
    ]
    body = helper.make_graph(nodes, f"{tag}_body", inputs, outputs)
    start = g.reduce("ReduceMax", value.name, [1], keepdims=0)
    axes = {"scan_input_axes": [1], "scan_output_axes": [1], "num_scan_inputs": 1}
    g.set(value.but(g.net.op("Scan", start, value.name, outputs=2, body=body, **axes)[1]))


def recurrent(g: Grower) -> None:
    """LSTM or GRU over tokens, one direction or both."""
    value = g.value
    hidden, width = 4, value.channels
    op, count = g.draw.choice([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    ways = g.draw.choice([1, 2])
    direction = "bidirectional" if ways == 2 else g.draw.choice(["forward", "reverse"])
    w = g.weight(ways, count * hidden, width)
    r = g.weight(ways, count * hidden, hidden)
    b = [g.net.draw(ways, 2 * count * hidden)] if g.chance(2) else []
    x = g.transpose(value.name, [1, 0, 2])
    y = g.net.op(op, x, w, r, *b, outputs=1, hidden_size=hidden, direction=direction)
    y = g.op("Reshape", g.transpose(y, [2, 0, 1, 3]), [0, 0, ways * hidden])
    g.set(value.resized(y, 2, ways * hidden))


def shared(g: Grower) -> None:
    """One weight read by two layers."""
    value: Value = g.value
    c = value.channels
    last = value.channel_axis == len(value.size) - 1
    w = g.weight(c, c) if last else g.weight(c, c, *[1] * (len(value.size) - 2))
    op = "MatMul" if last else "Conv"
    y = g.op(op, value.name, w)
    y = g.op(op, g.op("Relu", y) if g.chance(2) else y, w)
    g.set(value.but(y))
