"""Pieces that the tests of the normalizations build their chains from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from building import Net

AXES_INPUT_OPSET = 18
WIDTH = 6
EPSILON = 1e-3


def mean(net: Net, x: str, axes: Sequence[int] = (-1,), **attrs: object) -> str:
    """ReduceMean with its axes where the opset has them."""
    if net.opset < AXES_INPUT_OPSET:
        return net.op("ReduceMean", x, axes=list(axes), **attrs)
    return net.op("ReduceMean", x, list(axes), **attrs)


def square(net: Net, x: str, spelling: str = "Pow") -> str:
    return net.op("Pow", x, 2.0) if spelling == "Pow" else net.op("Mul", x, x)


def inverse(net: Net, shifted: str, spelling: str) -> str:
    """1/√shifted."""
    if spelling == "Pow":
        return net.op("Pow", shifted, -0.5)
    root = net.op("Sqrt", shifted) if spelling != "Reciprocal of Pow" else None
    root = root or net.op("Pow", shifted, 0.5)
    return net.op("Div", 1.0, root) if spelling == "Div" else net.op("Reciprocal", root)


INVERSES = ("Reciprocal", "Div", "Pow", "Reciprocal of Pow")


def tokens(net: Net, *shape: int | str, dtype: type = np.float32) -> str:
    return net.input("x", *(shape or ("n", 5, WIDTH)), dtype=dtype)


def affine(net: Net, y: str, *shape: int, scale: bool = True, bias: bool = True) -> str:
    """y·γ + β; constants on either side."""
    shape = shape or (WIDTH,)
    if scale:
        y = net.op("Mul", net.positive(*shape), y)
    return net.op("Add", y, net.draw(*shape, name="b")) if bias else y


Build = Callable[[Net], str | tuple[str, ...]]
