"""What is no farther than the last bits of the weights account for is rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net

from fusewright.verify import Reference
from fusewright.verify.last_bits import with_other_last_bits

TOLERANCE = 1e-5
FEEDS = [{"x": np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)}]


def _attention(common: float, factor: float = 1.0, folded: bool = False) -> onnx.ModelProto:
    """softmax(x·W·factor/3)·x, the factor behind the product or in W.

    All columns of W have something in common, of which no softmax knows, but for its rounding.
    """
    net = Net()
    x = net.input("x", 8, 16)
    weight = net.random.standard_normal((16, 8)) + common * net.random.standard_normal((16, 1))
    scale = np.float32(factor / 3)
    if folded:
        scores = net.op("MatMul", x, net.store(weight.astype(np.float32) * scale))
    else:
        scores = net.op("Mul", net.op("MatMul", x, net.store(weight)), scale)
    return net.proto(net.op("MatMul", net.op("Softmax", scores), x, name="out"))


def _compared(common: float, **other: float) -> tuple[float, bool]:
    reference = Reference(_attention(common), FEEDS)
    comparison = reference.compare(_attention(common, folded=True, **other))
    return comparison.worst.relative, reference.is_rounding(comparison, TOLERANCE)


@pytest.mark.parametrize(
    ("common", "factor", "is_rounding"),
    [
        (1e3, 1.0, True),  # as exact as such logits are
        (1e3, 1.003, False),  # another meaning, seen beside that
        (1.0, 1.0, True),  # within the tolerance
        (1.0, 1.0001, False),  # of well-defined results nothing is forgiven
    ],
)
def test_rounding_is_told_from_another_meaning(
    common: float, factor: float, is_rounding: bool
) -> None:
    relative, found = _compared(common, factor=factor)
    assert found == is_rounding, relative
    assert (relative > TOLERANCE) == (common > 1 or factor > 1)


def test_where_the_last_bits_decide_everything_nothing_is_proven() -> None:
    relative, found = _compared(1e5)
    assert relative > 1e-3
    assert not found


def test_half_of_the_numbers_move_to_a_neighbour() -> None:
    net = Net()
    w = net.store([[2.0, 1.1, -np.inf, 3e-5] * 25])
    model = net.proto(net.op("Add", net.input("x", 1, 100), w))
    before = onnx.numpy_helper.to_array(model.graph.initializer[0])
    copy = with_other_last_bits(model, Path())
    after = onnx.numpy_helper.to_array(copy.graph.initializer[0])
    assert np.array_equal(before, onnx.numpy_helper.to_array(model.graph.initializer[0]))
    special = (before == 2) | np.isinf(before)
    assert np.array_equal(before[special], after[special])
    moved = before[~special] != after[~special]
    assert 15 < moved.sum() < 35
    assert np.allclose(before[~special], after[~special], rtol=1.3e-7, atol=0)


def _judged(first: onnx.ModelProto, second: onnx.ModelProto, x: np.ndarray) -> tuple[float, bool]:
    reference = Reference(first, [{"x": x}])
    comparison = reference.compare(second)
    return comparison.worst.relative, reference.is_rounding(comparison, TOLERANCE)


@pytest.mark.parametrize("scale", [1.1, 2.0])
@pytest.mark.parametrize("products", [0, 1, 2, 3])
def test_numbers_that_sizes_are_made_of(products: int, scale: float) -> None:
    def model(factor: float) -> onnx.ModelProto:
        net = Net()
        x = net.input("x", 1, 1, 10, 10)
        for _ in range(products):
            x = net.op("Mul", x, np.float32(1.3))
        x = net.op("Conv", x, net.store(np.full((1, 1, 1, 1), factor)))
        x = net.op("Resize", x, "", net.store([1, 1, scale, scale]), mode="nearest")
        return net.proto(net.op("Add", x, net.draw(int(10 * scale), int(10 * scale))))

    x = np.random.default_rng(0).standard_normal((1, 1, 10, 10)).astype(np.float32)
    relative, found = _judged(model(0.9), model(0.9 * 1.0001), x)
    assert TOLERANCE < relative < 1e-3
    assert not found


def test_a_few_of_many_integers_are_no_rounding_by_themselves() -> None:
    def model(factor: float) -> onnx.ModelProto:
        net = Net()
        factors = net.store([[[factor]], [[1]], [[1]], [[1]]])
        scores = net.op("Mul", net.input("x", 1, 4, 500, 500), factors)
        return net.proto(net.op("ArgMax", scores, axis=1))

    x = np.random.default_rng(0).standard_normal((1, 4, 500, 500)).astype(np.float32)
    relative, found = _judged(model(1.0), model(1.000006), x)
    assert 0 < relative < TOLERANCE
    assert not found


def test_what_the_last_bits_select_says_nothing_of_values() -> None:
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    # These sums lie on the limit, and some of them move across.
    x[:, :32] = -0.7

    def model(factor: float) -> onnx.ModelProto:
        net = Net()
        shown = net.input("x", 1, 64)
        scores = net.op("Add", shown, net.store(np.full((1, 64), 0.7)))
        places = net.op("NonZero", net.op("Greater", scores, np.float32(0)))
        values = net.op("Mul", shown, net.store(np.full((1, 64), factor)))
        chosen = net.op("Transpose", places, perm=[1, 0])
        return net.proto(net.op("GatherND", values, chosen))

    relative, found = _judged(model(0.7), model(0.7 * 1.0005), x)
    assert TOLERANCE < relative < 1e-3
    assert not found
