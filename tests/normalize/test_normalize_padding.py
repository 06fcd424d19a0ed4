"""Pad in front of a convolution."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net, ops
from rewriting import Row, assert_left_alone, assert_rewritten, rewrite


def _padded(amounts: list[int], *more: object, rank: int = 2, mode: str = "constant", **conv):
    """A Conv behind Pad; `more` are its value and axes."""

    def build(net: Net) -> str:
        x = net.input("x", 1, 4, *(8,) * rank)
        whole = len(amounts) == 2 * (rank + 2)
        into = 4 + (amounts[1] + amounts[rank + 3] if whole else 0)
        padded = net.op("Pad", x, amounts, *more, mode=mode)
        return net.conv(padded, 6, into, rank=rank, **{"pads": [0] * 2 * rank, **conv})

    return build


def _with_attributes(net: Net) -> str:
    x = net.input("x", 1, 4, 8, 8)
    return net.conv(net.op("Pad", x, pads=[0, 0, 1, 1, 0, 0, 2, 2]), 6, 4, pads=[0, 0, 0, 0])


def _auto(kind: str, stride: int = 2):
    def build(net: Net) -> str:
        x = net.op("Pad", net.input("x", 1, 4, 8, 8), [0, 0, 1, 1, 0, 0, 1, 1])
        return net.op("Conv", x, net.draw(6, 4, 3, 3), auto_pad=kind, strides=[stride, stride])

    return build


def _used_twice(net: Net) -> tuple[str, str]:
    x = net.op("Pad", net.input("x", 1, 4, 8, 8), [0, 0, 1, 1, 0, 0, 1, 1])
    return net.conv(x, 6, 4, pads=[0, 0, 0, 0]), net.op("Relu", x)


def _computed_amounts(net: Net) -> str:
    x = net.input("x", 1, 4, 8, 8)
    shape = net.op("Shape", x)
    zeros = net.op("Sub", shape, shape)
    return net.op("Pad", x, net.op("Concat", zeros, zeros, axis=0))


_ONE = [0, 0, 1, 1, 0, 0, 1, 1]
MERGED = {
    "all around": Row(_padded(_ONE), "Conv"),
    # Keras pads the stem of MobileNet below and to the right only.
    "one side": Row(_padded([0, 0, 0, 0, 0, 0, 1, 1], strides=[2, 2]), "Conv"),
    "another amount on each side": Row(_padded([0, 0, 0, 1, 0, 0, 2, 3]), "Conv"),
    "added to the conv's own": Row(_padded(_ONE, pads=[1, 0, 2, 1]), "Conv"),
    "value 0 given": Row(_padded(_ONE, 0.0), "Conv"),
    "value omitted by name": Row(_padded(_ONE, None), "Conv"),
    "Conv1D": Row(_padded([0, 0, 2, 0, 0, 1], rank=1), "Conv"),
    "Conv3D": Row(_padded([0, 0, 1, 0, 2, 0, 0, 0, 1, 1], rank=3), "Conv"),
    "depthwise": Row(
        lambda n: n.conv(
            n.op("Pad", n.input("x", 1, 4, 8, 8), _ONE), 4, 4, group=4, pads=[0, 0, 0, 0]
        ),
        "Conv",
    ),
    "auto_pad VALID": Row(_auto("VALID"), "Conv"),
    "opset 18, without axes": Row(_padded(_ONE), "Conv", opset=18),
    "opset 11": Row(_padded(_ONE), "Conv", opset=11),
    "opset 9, amounts as an attribute": Row(_with_attributes, "Conv", opset=9),
    "two Pads": Row(
        lambda n: n.conv(
            n.op("Pad", n.op("Pad", n.input("x", 1, 4, 8, 8), _ONE), _ONE), 6, 4, pads=[0, 0, 0, 0]
        ),
        "Conv",
    ),
}

LEFT = {
    "another value": Row(_padded(_ONE, 0.5), "another value than 0"),
    "computed value": Row(
        lambda n: n.conv(
            n.op("Pad", n.input("x", 1, 4, 8, 8), _ONE, n.input("fill")), 6, 4, pads=[0] * 4
        ),
        "a stored tensor",
    ),
    "reflect": Row(_padded(_ONE, mode="reflect"), "not constant"),
    "edge": Row(_padded(_ONE, mode="edge"), "not constant"),
    "crops": Row(_padded([0, 0, -1, 0, 0, 0, 0, -1]), "crops"),
    "pads and crops": Row(_padded([0, 0, 2, 2, 0, 0, -1, -1]), "crops"),
    "channels": Row(_padded([0, 1, 1, 1, 0, 1, 1, 1]), "batch or channels"),
    "batch": Row(_padded([1, 0, 1, 1, 0, 0, 1, 1]), "batch or channels"),
    "selected axes": Row(_padded([1, 1, 1, 1], None, [2, 3]), "selected axes", opset=18),
    "auto_pad SAME_UPPER": Row(_auto("SAME_UPPER"), "auto_pad SAME_UPPER"),
    "auto_pad SAME_LOWER": Row(_auto("SAME_LOWER", 1), "auto_pad SAME_LOWER"),
    "used twice": Row(_used_twice, "used elsewhere"),
    "computed amounts": Row(
        lambda n: n.conv(_computed_amounts(n), 6, 4, pads=[0] * 4), "the computed tensor"
    ),
}


@pytest.mark.parametrize("row", MERGED.values(), ids=list(MERGED))
def test_pad_goes_into_the_conv(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize("row", LEFT.values(), ids=list(LEFT))
def test_pad_stays(row: Row) -> None:
    assert_left_alone("PadIntoConv", row)


def test_amounts_add_up() -> None:
    model, _ = rewrite(Row(_padded([0, 0, 0, 1, 0, 0, 2, 3], pads=[1, 0, 2, 1]), "").proto())
    assert ops(model) == "Conv"
    assert np.array_equal(model.graph.nodes[0].attrs["pads"], [1, 1, 4, 4])
