"""Stored numbers that half cannot hold, whoever reads them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from building import Net
from halving import Halved, halved

Build = Callable[[Net], str]
LARGE = 2e5
# What is fed makes up for the weights.
UNIT = 1 / LARGE


def _pair(net: Net, weight: str, axis: int | None, dtype: type = np.int8) -> str:
    values = np.abs(net.stored[weight])
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = np.float32(values.max() if axis is None else values.max(axis=others)) / 127
    zero = net.store(np.zeros(scale.shape), "zero", dtype)
    attrs = {} if axis is None else {"axis": axis}
    scale = net.store(scale, "scale")
    codes = net.op("QuantizeLinear", weight, scale, zero, **attrs)
    return net.op("DequantizeLinear", codes, scale, zero, **attrs)


def _weight(net: Net, *shape: int) -> str:
    return net.store(net.random.standard_normal(shape) * LARGE, "w")


def convolved(net: Net) -> str:
    x = net.input("x", 1, 4, 8, 8)
    return net.op("Conv", net.op("Mul", x, UNIT), _pair(net, _weight(net, 6, 4, 3, 3), 0))


def per_tensor(net: Net) -> str:
    x = net.input("x", 1, 4, 8, 8)
    return net.op("Conv", net.op("Mul", x, UNIT), _pair(net, _weight(net, 6, 4, 1, 1), None))


def multiplied(net: Net) -> str:
    x = net.op("Mul", net.input("x", 4, 8), UNIT)
    return net.op("MatMul", x, _pair(net, _weight(net, 8, 6), 1))


def of_codes(net: Net) -> str:
    """Codes with a scale, as INT4 weights are stored."""
    x = net.op("Mul", net.input("x", 4, 8), UNIT)
    codes = net.store(net.random.integers(-127, 128, (8, 6)), "codes", np.int8)
    zero = net.store(0, "zero", np.int8)
    return net.op("MatMul", x, net.op("DequantizeLinear", codes, np.float32(LARGE / 127), zero))


def embedded(net: Net) -> str:
    rows = net.op("Gather", _weight(net, 5, 8), net.input("i", 4, dtype=np.int64))
    return net.op("Mul", rows, UNIT)


def normed(net: Net) -> str:
    x = net.op("MatMul", net.input("x", 4, 8), net.draw(8, 8))
    return net.op("Mul", net.op("LayerNormalization", x, _weight(net, 8), net.draw(8)), UNIT)


def added(net: Net) -> str:
    x = net.op("Add", net.op("Mul", net.input("x", 4, 8), LARGE), _weight(net, 8))
    return net.op("Mul", x, UNIT)


BEYOND = (convolved, per_tensor, multiplied, of_codes, embedded, normed, added)


def _too_large(found: Halved) -> bool:
    return any("beyond FP16" in w or "ends at" in w for w in found.plan.float_nodes.values())


@pytest.mark.parametrize("build", BEYOND, ids=lambda b: b.__name__)
def test_what_is_beyond_half_stays_float32(build: Build) -> None:
    net = Net(21)
    y = build(net)
    samples = [{"i": np.int64([0, 1, 2, 4])}] if build is embedded else []
    output = net.op("Tanh", y)
    found = halved(net, output, samples=samples)
    assert found.error() < 1e-2
    assert _too_large(found)
    assert not _too_large(halved(net, output, kind="bf16", samples=samples)), "BF16 has the range"


def test_stored_numbers_do_not_grow() -> None:
    """40,000 fits into half, and no new data makes a weight larger."""
    net = Net(21)
    weight = net.store(net.random.uniform(-4e4, 4e4, (8, 6)), "w")
    x = net.op("Mul", net.input("x", 4, 8), 1e-4)
    assert halved(net, net.op("MatMul", x, _pair(net, weight, 1))).kept == ""
