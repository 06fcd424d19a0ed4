"""Logits are judged by the absolute error that half makes of those that count."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from building import Net, as_model
from halving import Feed, halved

from fusewright.precision import measure

LENGTH, SIZE = 12, 16
Shift = Callable[[Net, str], str]


def _attended(net: Net, shift: Shift) -> str:
    x = net.input("x", 2, LENGTH, SIZE)
    q, k = (net.op("MatMul", x, net.draw(SIZE, SIZE)) for _ in range(2))
    scores = net.op("Mul", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])), 0.25)
    weights = net.op("Softmax", shift(net, scores), axis=-1)
    return net.op("MatMul", weights, net.op("MatMul", x, net.draw(SIZE, SIZE)))


def _samples() -> list[Feed]:
    random = np.random.default_rng(3)
    return [{"x": random.standard_normal((2, LENGTH, SIZE)).astype("f4")} for _ in range(3)]


def shifted(net: Net, scores: str) -> str:
    bias = 700 + net.random.standard_normal((LENGTH, LENGTH))
    return net.op("Add", scores, np.float32(bias))


def rising(net: Net, scores: str) -> str:
    """ALiBi as BLOOM adds it: it grows with the key's position, which here begin at 3,000."""
    return net.op("Add", scores, np.float32(0.25 * np.arange(3000, 3000 + LENGTH)))


def masked(net: Net, scores: str) -> str:
    mask = np.triu(np.full((LENGTH, LENGTH), -1e9, np.float32), 1)
    return net.op("Add", rising(net, scores), mask)


def selected(net: Net, scores: str) -> str:
    blocked = np.triu(np.ones((LENGTH, LENGTH), bool), 1)
    return net.op("Where", blocked, np.float32(-np.inf), rising(net, scores))


def written_out(net: Net, scores: str) -> str:
    """The Softmax behind it changes nothing of its argument."""
    large = shifted(net, scores)
    rest = net.op("Sub", large, net.op("ReduceMax", large, axes=[-1]))
    total = net.op("ReduceSum", net.op("Exp", rest), [-1])
    return net.op("Sub", rest, net.op("Log", total))


LARGE = (shifted, rising, masked, selected, written_out)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("shift", LARGE, ids=lambda s: s.__name__)
def test_large_logits(shift: Shift, kind: str) -> None:
    net = Net(22 if kind == "bf16" and shift is not written_out else 17)
    found = halved(net, _attended(net, shift), kind=kind, samples=_samples())
    assert found.error() < (1e-2 if kind == "fp16" else 3e-2)
    if shift is not written_out:
        assert found.reason("Softmax").startswith("logits up to"), found.reason("Softmax")


def falling(net: Net, scores: str) -> str:
    """ALiBi: what is far away falls to −600, where nothing counts."""
    distance = np.abs(np.arange(LENGTH)[:, None] - np.arange(LENGTH))
    return net.op("Add", scores, np.float32(-50.0 * distance))


def of_one_key(net: Net, scores: str) -> str:
    """Logits of 700 of which one stands out in each row: no rounding brings another near it."""
    return net.op("Add", scores, np.float32(700 * np.eye(LENGTH)))


def row_masked(net: Net, scores: str) -> str:
    mask = np.zeros((LENGTH, LENGTH), np.float32)
    mask[3] = -1e9
    return net.op("Add", scores, mask)


HARMLESS = (falling, of_one_key, row_masked)


@pytest.mark.parametrize("shift", HARMLESS, ids=lambda s: s.__name__)
def test_logits_that_half_can_hold(shift: Shift) -> None:
    net = Net()
    found = halved(net, _attended(net, shift), samples=_samples())
    assert found.kept == ""
    assert found.error() < 1e-2


@pytest.mark.parametrize("opset", [17, 18])
def test_what_is_measured(opset: int) -> None:
    """Against brute force; a row of nothing but masks does not count."""
    net = Net(opset)
    net.op("Softmax", net.op("Mul", net.input("x", 3, 4), 1.0, name="large"), name="p")
    x = np.float32([[300, 299, -900, 0], [-1e4, -1e4, -1e4, -1e4], [5, -400, 5, 5]])
    ranges = measure(as_model(net.proto("p_y")).graph, [{"x": x}], "fp16")
    found = ranges.logits["large_y"]
    share = 1 / (1 + np.exp(-1.0))
    assert found.top == 300
    expected = np.sqrt(((300 * (1 - share)) ** 2 + (5 * 2 / 3) ** 2) / 3)
    assert found.unsettled == pytest.approx(expected, rel=1e-4)
