"""Keras' LayerNormalization, as tf2onnx writes FusedBatchNorm in training mode."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from norms import EPSILON, affine, mean
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule

LN = "LayerNormalization"
WIDTH = 6


def _keras(
    shape: tuple[int | str, ...] = ("n", WIDTH),
    rows: tuple[int, ...] = (1, -1, WIDTH, 1),
    *,
    back: list[int] | None = None,
    count: str = "computed",
    moments: tuple[int, ...] = (0, 2, 3),
    filled: tuple[float, float] = (1.0, 0.0),
    affine_behind: bool = True,
    inner: int = 1,
):
    """Reshape to [1, rows, size, 1], the moments of the rows, BatchNormalization, Reshape."""

    def build(net: Net) -> str:
        x = net.input("x", *shape)
        r = net.op("Reshape", x, list(rows))
        outer = net.op("Slice", net.op("Shape", x), [0], [-inner])
        number = net.op("ReduceProd", outer, axes=[0], keepdims=1)
        ones, zeros = (net.op("Expand", value, number) for value in filled)
        average = mean(net, r, moments)
        centred = net.op("Sub", r, average)
        squares = net.op("ReduceSumSquare", centred, axes=list(moments), keepdims=0)
        if count == "stored":
            total: object = float(WIDTH)
        else:
            sizes = net.op("Gather", net.op("Shape", r), np.array([0, 2, 3], np.int64))
            total = net.op("Cast", net.op("ReduceProd", sizes, axes=[0], keepdims=0), to=1)
        variance = net.op("Div", squares, total)
        flat = net.op("Squeeze", average, list(moments))
        y = net.op("BatchNormalization", r, ones, zeros, flat, variance, epsilon=EPSILON)
        y = net.op("Reshape", y, net.op("Shape", x) if back is None else back)
        return affine(net, y) if affine_behind else y

    return build


ROWS = {
    "as tf2onnx writes it": Row(_keras(), LN),
    "number of elements stored": Row(_keras(count="stored"), LN),
    "tokens": Row(_keras(("n", 5, WIDTH)), LN),
    "shape stored": Row(_keras(("n", 5, WIDTH), back=[-1, 5, WIDTH]), LN),
    "without scale and bias": Row(_keras(affine_behind=False), LN),
}
LEFT_ALONE = {
    "rows over two axes": Row(
        _keras((4, 3, 2), back=[4, 3, 2], affine_behind=False, inner=2),
        "a reshape of the last axis",
    ),
    "another shape behind": Row(
        _keras((4, 3, WIDTH), back=[3, 4, WIDTH], affine_behind=False), "another shape behind"
    ),
    "a scale of its own": Row(_keras(filled=(2.0, 0.0)), "the constant 1, found 2"),
    "opset 13": Row(_keras(), "needs opset 17", 13),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_operator(row: Row) -> None:
    # Its shape arithmetic is another stage's; what is left of it is read by nothing.
    assert_rewritten(row)


@pytest.mark.parametrize(("rule", "row"), by_rule({"KerasLayerNorm": LEFT_ALONE}))
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)
