"""Reductions in one form: a Transpose in front of them, not behind."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule

NCHW, NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


def _x(net: Net) -> str:
    return net.op("Relu", net.input("x", "n", 4, 5, 6))


def _mean(net: Net, *axes: int, keepdims: int = 1) -> str:
    if net.opset >= 18:
        return net.op("ReduceMean", _x(net), [*axes], keepdims=keepdims)
    return net.op("ReduceMean", _x(net), axes=[*axes], keepdims=keepdims)


def _pooled(net: Net) -> str:
    """What onnxruntime makes of Transpose → ReduceMean over height and width."""
    return net.op("Exp", net.op("Transpose", _mean(net, 1, 2), perm=NCHW))


def _length_one(net: Net) -> str:
    """The same of x / ‖x‖: x itself is still transposed."""
    x = _x(net)
    length = net.op("Transpose", net.op("ReduceL2", x, axes=[3]), perm=[0, 2, 1, 3])
    length = net.op("Clip", length, np.float32(1e-12))
    return net.op("Div", net.op("Transpose", x, perm=[0, 2, 1, 3]), length)


TURNED = {
    "a pool": Row(_pooled, "Relu Transpose GlobalAveragePool Exp"),
    "a pool, opset 18": Row(_pooled, "Relu Transpose GlobalAveragePool Exp", 18),
    "x/‖x‖": Row(_length_one, "Relu Transpose ReduceL2 Clip Div"),
    "one axis": Row(
        lambda n: n.op("Transpose", _mean(n, -1), perm=NHWC), "Relu Transpose ReduceMean"
    ),
}
LEFT = {
    "axes dropped": Row(
        lambda n: n.op("Transpose", _mean(n, 1, 2, keepdims=0), perm=[1, 0]), "keepdims"
    ),
    "the order left out": Row(
        lambda n: n.op("Transpose", _mean(n, 1, 2)), "an order, or axes, that are not known"
    ),
    "all axes": Row(
        lambda n: n.op("Transpose", n.op("ReduceMean", _x(n)), perm=NCHW),
        "an order, or axes, that are not known",
    ),
    "read elsewhere": Row(
        lambda n: (m := _mean(n, 1, 2), n.op("Transpose", m, perm=NCHW)), "used elsewhere"
    ),
}


@pytest.mark.parametrize("row", TURNED.values(), ids=list(TURNED))
def test_turned(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize(("rule", "row"), by_rule({"TransposedReduction": LEFT}))
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)
