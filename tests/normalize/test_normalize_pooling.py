"""Global average pooling in one form."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule


def _mean(axes: list[int], shape: tuple = ("n", 4, 5, 6), as_input: bool = False, **attrs: object):
    def build(net: Net) -> str:
        x = net.input("x", *shape)
        if as_input:
            return net.op("ReduceMean", x, axes, **attrs)
        return net.op("ReduceMean", x, axes=axes, **attrs)

    return build


def _window(kernel: list[int], shape: tuple = ("n", 4, 5, 6), **attrs: object):
    return lambda n: n.op("AveragePool", n.input("x", *shape), kernel_shape=kernel, **attrs)


def _computed_axes(net: Net) -> str:
    """[2, 3], out of the rank of x."""
    return net.op("Sub", net.op("Shape", net.op("Shape", "x")), [2, 1])


REDUCE_MEAN = {
    "axes as attribute": Row(_mean([2, 3]), "GlobalAveragePool"),
    "axes in another order": Row(_mean([3, 2]), "GlobalAveragePool"),
    "negative axes": Row(_mean([-1, -2]), "GlobalAveragePool"),
    "one negative axis": Row(_mean([2, -1]), "GlobalAveragePool"),
    "axes as input": Row(_mean([2, 3], as_input=True), "GlobalAveragePool", opset=18),
    "negative axes as input": Row(_mean([-2, -1], as_input=True), "GlobalAveragePool", opset=18),
    "no kept axes": Row(_mean([2, 3], keepdims=0), "GlobalAveragePool Flatten"),
    "no kept axes, as input": Row(
        _mean([-1, -2], as_input=True, keepdims=0), "GlobalAveragePool Flatten", opset=18
    ),
    "three spatial axes": Row(_mean([2, 3, 4], (2, 3, 4, 5, 6)), "GlobalAveragePool"),
    "dynamic map": Row(_mean([2, 3], ("n", 4, "h", "w")), "GlobalAveragePool"),
    "float16": Row(
        lambda n: n.op("ReduceMean", n.input("x", 1, 2, 2, 2, dtype=np.float16), axes=[2, 3]),
        "GlobalAveragePool",
    ),
    "opset 11": Row(_mean([2, 3]), "GlobalAveragePool", opset=11),
}

NO_REDUCE_MEAN = {
    "one axis": Row(_mean([3]), "other axes than the spatial"),
    "channels": Row(_mean([1]), "other axes than the spatial"),
    "channels last": Row(_mean([1, 2]), "other axes than the spatial"),
    "channels too": Row(_mean([1, 2, 3]), "other axes than the spatial"),
    "all axes": Row(lambda n: n.op("ReduceMean", n.input("x", 2, 4, 5, 6)), "other axes"),
    "no axes, which then means none": Row(
        lambda n: n.op("ReduceMean", n.input("x", 2, 4, 5, 6), None, noop_with_empty_axes=1),
        "other axes",
        opset=18,
    ),
    # [batch, tokens, channels] has no spatial axis.
    "rank 3": Row(_mean([2], (2, 4, 5)), "two spatial axes"),
    "rank 3, mean over tokens": Row(_mean([1], (2, 4, 5)), "two spatial axes"),
    "computed axes": Row(
        lambda n: n.op("ReduceMean", n.input("x", 2, 4, 5, 6), _computed_axes(n)),
        "a stored tensor",
        opset=18,
    ),
    "integers": Row(
        lambda n: n.op("ReduceMean", n.input("x", 2, 4, 5, 6, dtype=np.int32), axes=[2, 3]),
        "type int32",
    ),
    "float64": Row(
        lambda n: n.op("ReduceMean", n.input("x", 2, 4, 5, 6, dtype=np.float64), axes=[2, 3]),
        "type float64",
    ),
}

WINDOW = {
    "whole map": Row(_window([5, 6]), "GlobalAveragePool"),
    "strided": Row(_window([5, 6], strides=[5, 6]), "GlobalAveragePool"),
    "pads of zero": Row(_window([5, 6], pads=[0, 0, 0, 0]), "GlobalAveragePool"),
    "rank 3": Row(_window([5], ("n", 4, 5)), "GlobalAveragePool"),
    "auto_pad VALID": Row(_window([5, 6], auto_pad="VALID"), "GlobalAveragePool"),
    "rounded up": Row(_window([5, 6], ceil_mode=1), "GlobalAveragePool"),
}

NO_WINDOW = {
    "a smaller window": Row(_window([5, 5]), "not known to cover the map"),
    "dynamic map": Row(_window([2, 2], ("n", 4, "h", "w")), "not known to cover the map"),
    "padded": Row(_window([5, 6], pads=[1, 1, 1, 1]), "padded"),
    "padded, the padding counted": Row(
        _window([5, 6], pads=[1, 1, 1, 1], count_include_pad=1), "padded"
    ),
    # One value per pixel: the window covers the map, and moves over it.
    "auto_pad SAME_UPPER": Row(_window([5, 6], auto_pad="SAME_UPPER"), "padded"),
    "auto_pad SAME_LOWER": Row(_window([5, 6], auto_pad="SAME_LOWER"), "padded"),
}
_NEAR_MISSES = {"ReduceMeanPool": NO_REDUCE_MEAN, "WholeWindowPool": NO_WINDOW}


@pytest.mark.parametrize("row", (REDUCE_MEAN | WINDOW).values(), ids=[*REDUCE_MEAN, *WINDOW])
def test_pool(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize(
    ("rule", "row"),
    by_rule(_NEAR_MISSES),
)
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)
