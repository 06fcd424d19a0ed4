"""Divisors that come near 0 are told: no figure over a few samples shows what happens there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net

from fusewright import RandomSamples, optimize

SHAPE = (1, 3, 16, 16)
Head = Callable[[Net, str, str], str]


def _notes(folder: Path, head: Head, precision: str = "int8", sink: float = 0.0) -> list[str]:
    """What is said of a quotient of two convolutions; `sink` is the divisor's bias."""
    net = Net(17)
    h = net.op("Relu", net.conv(net.input("x", *SHAPE), 16, 3))
    y = net.conv(h, 4, 16)
    x = net.op("Add", net.conv(h, 4, 16), np.float32(sink))
    path = folder / "m.onnx"
    onnx.save(net.proto(head(net, y, x)), path)
    result = optimize(path, None, calibration=RandomSamples(4), precision=precision)
    return [note for note in result.notes if "divides by" in note]


def _atan(net: Net, y: str, x: str) -> str:
    return net.op("Atan", net.op("Div", y, x, name="quotient"))


@pytest.mark.parametrize("precision", ["int8", "int8+fp16", "fp16"])
def test_the_atan_of_a_quotient_jumps_where_the_divisor_turns(
    precision: str, tmp_path: Path
) -> None:
    """35.9 dB over four samples that did not turn, 3.5 over three of which one did."""
    (note,) = _notes(tmp_path, _atan, precision)
    assert note.startswith("'quotient' divides by numbers from -")
    assert "may fall on the other side" in note


def test_a_reciprocal_too(tmp_path: Path) -> None:
    (note,) = _notes(tmp_path, lambda net, y, x: net.op("Mul", y, net.op("Reciprocal", x)))
    assert "divides by numbers from -" in note


def test_a_layer_that_comes_near_zero_on_these_samples(tmp_path: Path) -> None:
    (note,) = _notes(tmp_path, _atan, sink=4.2)
    assert "numbers as small as" in note and "numbers from" not in note


def test_what_stays_away_from_zero_is_told_of_nothing(tmp_path: Path) -> None:
    assert not _notes(tmp_path, _atan, sink=50.0)


def test_without_rounding_nothing_falls_on_the_other_side(tmp_path: Path) -> None:
    assert not _notes(tmp_path, _atan, precision="fp32")


@pytest.mark.parametrize(
    "positive",
    [
        lambda net, x: net.op("Softplus", x),
        lambda net, x: net.op("Add", net.op("Exp", x), 1e-6),
        lambda net, x: net.op("Sqrt", net.op("Mul", x, x)),
        lambda net, x: net.op("Max", x, 1e-3),
        lambda net, x: net.op("ReduceL2", x, axes=[1], keepdims=1),
        lambda net, x: net.op("ReduceSum", net.op("Abs", x), [1], keepdims=1),
        lambda net, x: net.op("Concat", *[net.op("Sigmoid", x)] * 1, axis=1),
    ],
    ids=["softplus", "exp", "deviation", "max", "norm", "sum of sizes", "concat"],
)
def test_a_divisor_that_cannot_be_negative_is_not_looked_at(
    positive: Callable[[Net, str], str], tmp_path: Path
) -> None:
    assert not _notes(tmp_path, lambda net, y, x: net.op("Div", y, positive(net, x)))


def test_a_concat_is_negative_where_one_of_its_parts_is(tmp_path: Path) -> None:
    def head(net: Net, y: str, x: str) -> str:
        both = net.op("Concat", net.op("Sigmoid", x), x, axis=1)
        return net.op("Div", net.op("Concat", y, y, axis=1), both)

    assert len(_notes(tmp_path, head)) == 1


def test_counts_are_no_layer(tmp_path: Path) -> None:
    """A mean over tokens that are not masked: 1 to 40 of them."""
    net = Net(17)
    x, mask = net.input("x", 2, 40, 16), net.input("mask", 2, 40, dtype=np.int64)
    h = net.op("MatMul", x, net.draw(16, 32))
    kept = net.op("Cast", mask, to=1)
    count = net.op("ReduceSum", kept, [1], keepdims=1)
    y = net.op("Div", net.op("ReduceSum", h, [1], keepdims=0), count)
    onnx.save(net.proto(net.op("MatMul", y, net.draw(32, 8))), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 40), np.int64)
    masks[0], masks[1, 0] = 1, 1
    feed = {"x": rng.standard_normal((2, 40, 16)).astype(np.float32), "mask": masks}
    assert not optimize(tmp_path / "m.onnx", None, calibration=feed).notes


def test_a_divisor_without_elements_or_with_nan_does_no_harm(tmp_path: Path) -> None:
    net = Net(17)
    x, y = net.input("x", *SHAPE), net.input("n", 2, 4)
    is_large = net.op("Greater", net.op("ReduceMax", y, axes=[1], keepdims=0), 1e9)
    none = net.op("Neg", net.op("Compress", y, is_large, axis=0))
    nan = net.op("Log", net.op("Neg", net.op("Abs", x)))
    kept = net.op("Where", net.op("IsNaN", net.op("Div", x, nan)), x, x)
    onnx.save(net.proto(net.conv(kept, 4, 3), net.op("Div", none, none)), tmp_path / "m.onnx")
    feed = {
        "x": np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32),
        "n": np.arange(8, dtype=np.float32).reshape(2, 4),
    }
    result = optimize(tmp_path / "m.onnx", None, calibration=feed)
    assert any(group.is_quantized for group in result.plan.groups)
    assert not result.notes
