"""Models that plain FP16 breaks: right to 1e-2, with a small float32 island.

Each is also run all in half, where it must fail: else the model would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from building import Net
from halving import halved, naive, worst_error

Build = Callable[[Net], str]
WIDTH = 32


def _mlp(net: Net, x: str, layers: int = 2) -> str:
    for _ in range(layers):
        x = net.op("MatMul", x, net.draw(WIDTH, WIDTH))
        x = net.op("Relu", net.op("Add", x, net.draw(WIDTH)))
    return x


def large_interior(net: Net) -> str:
    """Activations of 1e6 between two Linears, brought back by a product."""
    x = _mlp(net, net.input("x", 8, WIDTH))
    large = net.op("Mul", x, 1e6)
    back = net.op("Mul", net.op("Relu", net.op("Add", large, 5.0)), 1e-6)
    return _mlp(net, back)


def sum_of_squares(net: Net) -> str:
    """An RMS norm written out, of values near 300: each square is 9e4."""
    x = net.op("Mul", _mlp(net, net.input("x", 8, WIDTH)), 300.0)
    total = net.op("ReduceSum", net.op("Mul", x, x), [-1], keepdims=1)
    root = net.op("Sqrt", net.op("Add", total, 1e-6))
    return _mlp(net, net.op("Div", x, root))


def tiny_epsilon(net: Net) -> str:
    """A norm written out with ε = 1e-12 and rows of zeros, which half would divide by 0."""
    x = _mlp(net, net.input("x", 8, WIDTH))
    x = net.op("Mul", x, np.float32([[0.0]] + [[1.0]] * 7))
    mean = net.op("ReduceMean", x, axes=[-1])
    centred = net.op("Sub", x, mean)
    variance = net.op("ReduceMean", net.op("Pow", centred, 2.0), axes=[-1])
    root = net.op("Sqrt", net.op("Add", variance, 1e-12))
    return _mlp(net, net.op("Div", centred, root))


def large_product(net: Net) -> str:
    """A MatMul of two activations whose sums leave half."""
    x = net.op("Mul", net.input("x", 8, WIDTH), 100.0)
    product = net.op("MatMul", x, net.op("Transpose", x, perm=[1, 0]))
    return net.op("MatMul", net.op("Mul", product, 1e-6), net.draw(8, 8))


BROKEN = (large_interior, sum_of_squares, tiny_epsilon, large_product)


@pytest.mark.parametrize("build", BROKEN, ids=lambda b: b.__name__)
def test_what_breaks_in_half_stays_right(build: Build) -> None:
    net = Net()
    found = halved(net, build(net))
    assert worst_error(found.before, naive(found.before), found.samples) > 0.05
    assert found.error() < 1e-2
    assert found.plan.half_nodes


@pytest.mark.parametrize(
    ("build", "kept", "casts"),
    [
        # Input, output, into the island and out of it.
        (large_interior, "Mul Add Relu Mul", 4),
        (sum_of_squares, "Mul ReduceSum Add Sqrt", 4),
        (tiny_epsilon, "Pow ReduceMean Add Sqrt Div", 4),
        (large_product, "Mul Transpose MatMul Mul", 2),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_the_island_is_small(build: Build, kept: str, casts: int) -> None:
    net = Net()
    found = halved(net, build(net))
    assert (found.kept, found.casts) == (kept, casts)
