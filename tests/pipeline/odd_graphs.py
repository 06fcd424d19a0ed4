"""Graphs that look unlike those of textbooks, each valid and each seen in some exporter's files.

A builder takes a `Net` and returns the outputs; inputs have a batch of 1, data is random.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from building import Net

Build = Callable[[Net], tuple[str, ...]]
LOWEST = float(np.finfo(np.float32).min)


def _map(net: Net, *, channels: int = 16, size: int | str = 16) -> str:
    """A map [1, channels, size, size] behind a convolution and Relu."""
    return net.op("Relu", net.conv(net.input("x", 1, 3, size, size), channels, 3))


def _tokens(net: Net, *, width: int = 32, length: int | str = 12) -> str:
    return _linear(net, net.input("x", 1, length, width), width)


def _linear(net: Net, x: str, width: int, out: int | None = None) -> str:
    y = net.op(
        "MatMul", x, net.store(net.random.standard_normal((width, out or width)) / width**0.5)
    )
    return net.op("Add", y, net.draw(out or width))


def _ints(net: Net, *values: int) -> str:
    return net.store(np.array(values), dtype=np.int64)


def _relaid(net: Net, x: str, channels: int = 16) -> str:
    """Tokens of a map, a norm, and the map again, as SegFormer has it between its stages."""
    size = net.op("Slice", net.op("Shape", x), _ints(net, 2), _ints(net, 4))
    t = net.op("Transpose", net.op("Reshape", x, _ints(net, 0, channels, -1)), perm=[0, 2, 1])
    ones, zeros = net.positive(channels), net.draw(channels)
    t = net.op("LayerNormalization", t, ones, zeros)
    shape = net.op("Concat", _ints(net, 1), size, _ints(net, channels), axis=0)
    return net.op("Transpose", net.op("Reshape", t, shape), perm=[0, 3, 1, 2])


def sized(op: str, *readers: str, size: int | str = "s") -> Build:
    """Something asks for the size of a relaid map beside those that read it quantized."""

    def build(net: Net) -> tuple[str, ...]:
        x = _relaid(net, _map(net, size=size))
        outputs = [net.conv(x, 8, 16)] if "conv" in readers else []
        if "linear" in readers:
            q = net.op("Reshape", x, _ints(net, 0, 16, -1))
            q = net.op("Transpose", q, perm=[0, 2, 1])
            outputs.append(_linear(net, q, 16, 8))
        if "pool" in readers:
            outputs.append(net.conv(net.op("MaxPool", x, kernel_shape=[2, 2]), 8, 16))
        asked = net.op(op, x)
        if "expand" in readers:
            outputs.append(net.op("Expand", net.store(1.0), asked))
        if "fill" in readers:
            outputs.append(net.op("ConstantOfShape", asked))
        return (*outputs, net.op("Identity", asked))

    return build


def selected(op: str, **attrs: object) -> Build:
    """Behind a pair's layout operators, one that reads the elements and gives whole numbers."""

    def build(net: Net) -> tuple[str, ...]:
        x = net.op("Transpose", _map(net), perm=[0, 1, 3, 2])
        return net.conv(x, 8, 16), net.op(op, x, **attrs)

    return build


def padded(fill: float | str, pool: str = "MaxPool", *, concat: bool = False) -> Build:
    """TensorFlow's SAME pooling: a Pad in front of a pool, which a quantized convolution reads."""

    def build(net: Net) -> tuple[str, ...]:
        x = _map(net)
        pads = _ints(net, 0, 0, 1, 1, 0, 0, 1, 1)
        if isinstance(fill, str):
            y = net.op("Pad", x, pads, mode=fill)
        else:
            y = net.op("Pad", x, pads, net.store(fill))
        if pool != "Conv":
            y = net.op(pool, y, kernel_shape=[3, 3])
        if concat:
            y = net.op("Concat", net.op("Relu", net.conv(x, 16, 16)), y, axis=1)
        pads_of_conv = {"pads": [0, 0, 0, 0]} if pool == "Conv" else {}
        return net.conv(y, 8, 32 if concat else 16, **pads_of_conv), net.conv(x, 4, 16)

    return build


def stacked(front: str | None) -> Build:
    """A grey image three times in one Concat."""

    def build(net: Net) -> tuple[str, ...]:
        x = net.input("x", 1, 1, 16, 16)
        if front == "Relu":
            x = net.op("Relu", net.conv(x, 1, 1))
        if front == "Transpose":
            x = net.op("Transpose", x, perm=[0, 1, 3, 2])
        x = net.op("Concat", x, x, x, axis=1)
        y = net.op("Relu", net.conv(x, 16, 3))
        return (net.conv(y, 4, 16),)

    return build


def doubled(op: str) -> Build:
    """One tensor at both inputs of an operator, between convolutions."""

    def build(net: Net) -> tuple[str, ...]:
        x = _map(net)
        return (net.conv(net.op("Relu", net.op(op, x, x)), 4, 16),)

    return build


def gram(net: Net) -> tuple[str, ...]:
    x = _tokens(net)
    return (_linear(net, net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1])), 12, 8),)


def squared(net: Net) -> tuple[str, ...]:
    x = _tokens(net, length=32)
    return (_linear(net, net.op("MatMul", x, x), 32, 8),)


def self_attention(net: Net) -> tuple[str, ...]:
    """q, k and v are one tensor, as in a non-local block without projections."""
    x = _tokens(net)
    heads = net.op("Reshape", x, _ints(net, 0, 0, 2, 16))
    q = net.op("Transpose", heads, perm=[0, 2, 1, 3])
    scores = net.op("MatMul", q, net.op("Transpose", q, perm=[0, 1, 3, 2]))
    weights = net.op("Softmax", net.op("Mul", scores, 0.25), axis=-1)
    y = net.op("Transpose", net.op("MatMul", weights, q), perm=[0, 2, 1, 3])
    return (_linear(net, net.op("Reshape", y, _ints(net, 0, 0, 32)), 32),)


def summed(net: Net) -> tuple[str, ...]:
    x = _map(net)
    return (net.conv(net.op("Sum", x, x, x), 4, 16),)


def zeros(where: str) -> Build:
    """Weights or activations that are zero everywhere."""

    def build(net: Net) -> tuple[str, ...]:
        x = _map(net)
        if where == "weight":
            y = net.conv(x, 16, 16, weight=net.store(np.zeros((16, 16, 3, 3))))
        elif where == "activation":
            y = net.conv(net.op("Mul", x, 0.0), 16, 16)
        else:
            y = net.conv(net.op("Mul", x, float(where)), 16, 16, bias=False)
        y = net.op("Add", net.op("Relu", y), x)
        return (net.conv(y, 4, 16),)

    return build


def tiny(scale: float) -> Build:
    """Everything as small as transformers' SAM has it with its default initializer_range."""

    def build(net: Net) -> tuple[str, ...]:
        def linear(x: str, into: int, out: int) -> str:
            return net.op("MatMul", x, net.store(net.random.standard_normal((into, out)) * scale))

        weight = net.store(net.random.standard_normal((32, 3, 4, 4)) * scale)
        x = net.op("Conv", net.input("x", 1, 3, 24, 24), weight, strides=[4, 4])
        x = net.op("Transpose", x, perm=[0, 2, 3, 1])
        y = net.op("LayerNormalization", x, net.store(np.ones(32)), net.store(np.zeros(32)))
        y = net.op("Pad", y, _ints(net, 0, 0, 0, 0, 0, 2, 2, 0))
        y = net.op("Reshape", y, _ints(net, 1, 2, 4, 2, 4, 32))
        y = net.op(
            "Reshape", net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), _ints(net, -1, 16, 32)
        )
        y = linear(net.op("Gelu" if net.opset >= 20 else "Relu", linear(y, 32, 64)), 64, 32)
        y = net.op("Reshape", y, _ints(net, 1, 2, 2, 4, 4, 32))
        y = net.op(
            "Reshape", net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), _ints(net, 1, 8, 8, 32)
        )
        y = net.op("Slice", y, _ints(net, 0, 0), _ints(net, 6, 6), _ints(net, 1, 2))
        return (linear(net.op("Add", x, y), 32, 8),)

    return build


def constants_only(net: Net) -> tuple[str, ...]:
    """A branch that reads nothing but stored tensors, beside one that is computed."""
    y = net.op("Concat", _map(net), net.draw(1, 16, 16, 16), axis=1)
    return net.conv(y, 4, 32), net.op("MatMul", net.draw(4, 8), net.draw(8, 4))


def nothing_selected(net: Net) -> tuple[str, ...]:
    """A slice without elements in a Concat."""
    x = _map(net)
    none = net.op("Slice", x, _ints(net, 0), _ints(net, 0), _ints(net, 1))
    return (net.conv(net.op("Concat", x, none, axis=1), 4, 16),)


def dead_branch(net: Net) -> tuple[str, ...]:
    x = _map(net)
    net.conv(net.op("Transpose", x, perm=[0, 1, 3, 2]), 4, 16)
    return (net.conv(x, 4, 16),)


def unread_output(net: Net) -> tuple[str, ...]:
    x, _ = net.op("Split", _map(net), outputs=2, axis=1)
    return (net.conv(x, 4, 8),)


def read_inside_too(net: Net) -> tuple[str, ...]:
    """Outputs of the model that convolutions read as well, in front of and behind layout."""
    x = _map(net)
    y = net.op("Transpose", x, perm=[0, 1, 3, 2])
    return x, y, net.conv(y, 4, 16)


def stored_output(net: Net) -> tuple[str, ...]:
    weight = net.draw(4, 16, 3, 3)
    return net.conv(_map(net), 4, 16, weight=weight), weight


def scalar(net: Net) -> tuple[str, ...]:
    x = net.op("ReduceMean", _map(net), keepdims=0)
    x = net.op("Reshape", x, _ints(net, 1, 1))
    return net.op("MatMul", x, net.draw(1, 8)), net.op("Reshape", x, net.store([], dtype=np.int64))


def shared_weight(kind: str) -> Build:
    """One weight in several nodes: RetinaNet's heads over its levels, tied Linears."""

    def build(net: Net) -> tuple[str, ...]:
        if kind == "linear":
            weight, x = net.draw(32, 32), _tokens(net)
            y = net.op("Relu", net.op("MatMul", x, weight))
            return (net.op("MatMul", net.op("Relu", net.op("MatMul", y, weight)), weight),)
        if kind == "grouped":  # two channels per group: that one stays float
            weight, x = net.draw(16, 2, 3, 3), _map(net, channels=32)
            part, _ = net.op("Split", x, _ints(net, 2, 30), outputs=2, axis=1)
            whole = net.conv(x, 16, 32, group=16, weight=weight)
            return net.conv(part, 16, 2, weight=weight), whole
        weight, x = net.draw(16, 16, 3, 3), _map(net)
        small = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        return net.conv(x, 16, 16, weight=weight), net.conv(small, 16, 16, weight=weight)

    return build


def tied_head(kind: str) -> Build:
    """An output head that is the embedding table, transposed."""

    def build(net: Net) -> tuple[str, ...]:
        table = net.draw(160, 32)
        x = net.op("Gather", table, net.input("ids", 1, 6, dtype=np.int64))
        x = net.op("Relu", _linear(net, x, 32))
        if kind == "transpose":
            return (net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0])),)
        return (net.op("Gemm", net.op("Reshape", x, _ints(net, -1, 32)), table, transB=1),)

    return build


def identities(net: Net) -> tuple[str, ...]:
    x = net.op("Identity", net.op("Identity", _map(net)))
    y = net.op("Add", net.conv(net.op("Identity", x), 16, 16), net.op("Identity", x))
    return (net.op("Identity", net.conv(net.op("Identity", net.op("Relu", y)), 4, 16)),)


def split_apart(net: Net) -> tuple[str, ...]:
    """All parts but one are read in float32, by functions half does not do."""
    parts = net.op("Split", _map(net), outputs=4, axis=1)
    wide = [net.op("CumSum", part, net.store(2, dtype=np.int64)) for part in parts[:3]]
    return (*wide, net.conv(parts[3], 4, 4))


def large_between(net: Net) -> tuple[str, ...]:
    """Values beyond half, laid out anew between their pair and what reads it."""
    x = net.op("Mul", _map(net), 3e5)
    y = net.op("Transpose", net.op("MaxPool", x, kernel_shape=[2, 2]), perm=[0, 1, 3, 2])
    return (net.conv(y, 4, 16),)


def act_add(scale: float) -> Build:
    """Act → Add between pairs, of numbers that half holds or not."""

    def build(net: Net) -> tuple[str, ...]:
        x = net.op("Mul", _map(net), scale)
        y = net.op("Add", net.op("Relu", net.conv(x, 16, 16)), x)
        y = net.op("Add", net.op("LeakyRelu", y), y)
        return (net.conv(y, 4, 16),)

    return build


GRAPHS: dict[str, Build] = {
    "shape beside a convolution": sized("Shape", "conv"),
    "shape beside a linear": sized("Shape", "linear"),
    "shape beside both": sized("Shape", "conv", "linear"),
    "shape beside a pool": sized("Shape", "conv", "pool"),
    "shape of a known map": sized("Shape", "conv", "linear", size=16),
    "size beside both": sized("Size", "conv", "linear"),
    "expand to a shape": sized("Shape", "conv", "linear", "expand"),
    "constant of a shape": sized("Shape", "conv", "linear", "fill"),
    "argmax": selected("ArgMax", axis=1),
    "nonzero": selected("NonZero"),
    "argmin": selected("ArgMin", axis=-1),
    "pad -inf": padded(-np.inf),
    "pad lowest": padded(LOWEST),
    "pad -1e9": padded(-1e9),
    "pad 1e9": padded(1e9),
    "pad -65504": padded(-65504.0),
    "pad -inf concat": padded(-np.inf, concat=True),
    "pad -1e9 concat": padded(-1e9, concat=True),
    "pad 0 concat": padded(0.0, concat=True),
    "pad edge": padded("edge"),
    "pad reflect": padded("reflect"),
    "pad 0 average": padded(0.0, "AveragePool"),
    "pad 1 average": padded(1.0, "AveragePool"),
    "pad edge average": padded("edge", "AveragePool"),
    "pad 0 conv": padded(0.0, "Conv"),
    "pad 1e4 conv": padded(1e4, "Conv"),
    "pad reflect conv": padded("reflect", "Conv"),
    "concat thrice": stacked(None),
    "concat thrice behind layout": stacked("Transpose"),
    "concat thrice behind an act": stacked("Relu"),
    "x + x": doubled("Add"),
    "x * x": doubled("Mul"),
    "sum of three x": summed,
    "x xT": gram,
    "x x": squared,
    "q is k is v": self_attention,
    "weight of zeros": zeros("weight"),
    "activation of zeros": zeros("activation"),
    "activation of 1e-10": zeros("1e-10"),
    "activation of 1e-30": zeros("1e-30"),
    "activation of 1e-42": zeros("1e-42"),
    "sam 1e-10": tiny(1e-10),
    "sam 1e-6": tiny(1e-6),
    "sam 1e-4": tiny(1e-4),
    "constants only": constants_only,
    "nothing selected": nothing_selected,
    "dead branch": dead_branch,
    "unread output": unread_output,
    "output read inside": read_inside_too,
    "stored output": stored_output,
    "scalar": scalar,
    "shared conv": shared_weight("conv"),
    "shared linear": shared_weight("linear"),
    "shared with a float": shared_weight("grouped"),
    "tied head": tied_head("transpose"),
    "tied gemm": tied_head("gemm"),
    "identities": identities,
    "split apart": split_apart,
    "large between": large_between,
    "act add": act_add(1.0),
    "act add beyond half": act_add(1e5),
    "act add below half": act_add(1e-9),
}
"""By name."""
