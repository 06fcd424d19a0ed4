"""One concept, many spellings: what exporters make of a layer, drawn by a seed.

speller = Speller(Net(), random.Random(7), x, channels=4)
speller.block("residual", "silu", 8)
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from building import Net

ACTS = ("relu", "relu6", "hardswish", "hardsigmoid", "silu")
BLOCKS = ("conv", "residual", "act_add", "excite", "branches", "pool", "depthwise")
# The opsets from on which axes are an input, and HardSwish is an operator.
SUM_AXES_INPUT, AXES_INPUT, HARD_SWISH = 13, 18, 14


class Speller:
    """Writes each concept in one of its spellings; without a random always in the plainest.

    Attributes:
        x: what the next block reads, [batch, channels, height, width].
    """

    def __init__(self, net: Net, random: random.Random | None, x: str, channels: int) -> None:
        self.net, self.random = net, random
        self.x, self.channels = x, channels

    def pick(self, count: int) -> int:
        return 0 if self.random is None else self.random.randrange(count)

    def op(self, op: str, *inputs: object, **attrs: object) -> str:
        """A node; operands that commute may be swapped, and Identity may follow."""
        if op in ("Add", "Mul", "Max", "Min") and self.pick(2):
            inputs = inputs[::-1]
        y = self.net.op(op, *inputs, **attrs)
        return self.net.op("Identity", y) if self.pick(4) == 1 else y

    def reduce(self, op: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        """A Reduce… with its axes where the opset has them."""
        if self.net.opset >= (SUM_AXES_INPUT if op == "ReduceSum" else AXES_INPUT):
            return self.op(op, x, list(axes), keepdims=keepdims)
        return self.op(op, x, axes=list(axes), keepdims=keepdims)

    def number(self, value: float) -> np.ndarray:
        return np.full(((), (1,), (1, 1))[self.pick(3)], value, np.float32)

    def conv_bn(self, x: str, out: int, into: int, kernel: int = 3, group: int = 1) -> str:
        net = self.net
        w, b = net.draw(out, into // group, kernel, kernel), net.draw(out)
        gamma, variance, beta, mean = (
            net.stored[name]
            for name in (net.positive(out), net.positive(out), net.draw(out), net.draw(out))
        )
        pads = [kernel // 2] * 4
        if self.pick(3) == 1:
            x, pads = self.op("Pad", x, [0, 0, *pads[:2], 0, 0, *pads[:2]]), [0] * 4
        if self.pick(3) == 1:
            y = self.op("Conv", x, w, pads=pads, group=group)
            y = self.op("Add", y, net.stored[b].reshape(out, 1, 1))
        else:
            y = self.op("Conv", x, w, b, pads=pads, group=group)
        if self.pick(2):
            scale = gamma / np.sqrt(variance + np.float32(1e-5))
            y = self.op("Mul", y, scale.reshape(1, out, 1, 1))
            return self.op("Add", y, (beta - mean * scale).reshape(out, 1, 1))
        return self.op("BatchNormalization", y, gamma, beta, mean, variance)

    def act(self, kind: str, x: str) -> str:
        return getattr(self, f"_{kind}")(x)

    def _relu(self, x: str) -> str:
        which = self.pick(3)
        if which == 1:
            return self.op("Max", x, self.number(0.0))
        return self.op("Clip", x, 0.0) if which else self.op("Relu", x)

    def _relu6(self, x: str) -> str:
        which = self.pick(4)
        if which == 0:
            return self.op("Clip", x, 0.0, 6.0)
        if which == 1:
            return self.op("Min", self.op("Relu", x), self.number(6.0))
        if which == 2:
            return self.op("Min", self.op("Max", x, self.number(0.0)), self.number(6.0))
        return self.op("Max", self.op("Min", x, self.number(6.0)), self.number(0.0))

    def _sixth(self, x: str) -> str:
        if self.pick(2):
            return self.op("Mul", x, self.number(1 / 6))
        return self.op("Div", x, self.number(6.0))

    def _hardsigmoid(self, x: str) -> str:
        if self.pick(2):
            return self._sixth(self._relu6(self.op("Add", x, self.number(3.0))))
        return self.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)

    def _hardswish(self, x: str) -> str:
        which = self.pick(4)
        if which == 0 and self.net.opset >= HARD_SWISH:
            return self.op("HardSwish", x)
        if which <= 1:
            return self.op("Mul", x, self._hardsigmoid(x))
        shifted = self._relu6(self.op("Add", x, self.number(3.0)))
        if which == 2:
            return self._sixth(self.op("Mul", x, shifted))
        return self.op("Mul", self._sixth(x), shifted)

    def _silu(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def add(self, a: str, b: str) -> str:
        return self.op("Sum", a, b) if self.pick(4) == 1 else self.op("Add", a, b)

    def linear(self, x: str, into: int, out: int) -> str:
        w, b = self.net.stored[self.net.draw(into, out)], self.net.draw(out)
        which = self.pick(3)
        if which == 0:
            return self.op("Gemm", x, w, b)
        if which == 1:
            return self.op("Gemm", x, np.ascontiguousarray(w.T), b, transB=1)
        return self.op("Add", self.op("MatMul", x, w), b)

    def global_pool(self, x: str, flat: bool) -> str:
        if self.pick(2):
            return self.reduce("ReduceMean", x, [-1, 2], keepdims=int(not flat))
        y = self.op("GlobalAveragePool", x)
        return self.op("Flatten", y) if flat else y

    def dropout(self, x: str) -> str:
        return self.op("Dropout", x) if self.pick(3) == 1 else x

    # Blocks.

    def block(self, kind: str, act: str, size: int) -> None:
        x, channels = self.x, self.channels
        if kind == "conv":
            self.x, self.channels = self.act(act, self.conv_bn(x, size, channels)), size
        elif kind == "residual":
            inner = self.act(act, self.conv_bn(x, size, channels))
            y = self.conv_bn(inner, size, size)
            skip = x if size == channels else self.conv_bn(x, size, channels, kernel=1)
            self.x, self.channels = self.act(act, self.add(y, skip)), size
        elif kind == "act_add":
            self.x = self.add(self.act(act, self.conv_bn(x, channels, channels)), x)
        elif kind == "excite":
            inner = self.act("relu", self.conv_bn(self.global_pool(x, False), 2, channels, 1))
            gate = self.act("hardsigmoid", self.conv_bn(inner, channels, 2, 1))
            self.x = self.op("Mul", x, gate)
        elif kind == "branches":
            parts = [self.act(act, self.conv_bn(x, 4, channels, 1 + 2 * i)) for i in range(size)]
            self.x, self.channels = self.op("Concat", *parts, axis=1), 4 * size
        elif kind == "depthwise":
            self.x = self.act(act, self.conv_bn(x, channels, channels, group=channels))
        else:
            self.x = self.op("MaxPool", x, kernel_shape=[2, 2], pads=[0, 0, 1, 1])

    def head(self, kind: str) -> None:
        if kind == "none":
            return
        self.x = self.dropout(self.global_pool(self.x, True))
        if kind == "two linears":
            self.x = self.act("relu", self.linear(self.x, self.channels, 6))
            self.channels = 6
        self.x = self.linear(self.dropout(self.x), self.channels, 3)
