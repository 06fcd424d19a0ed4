"""What looks like Swin's windows and is none, or whose reverse is none: each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from attending import WIDTH, assert_collapses, found_in, kinds, packed, proto_of, reasons, whole
from building import Net
from windows import (
    FAR,
    Block,
    attend_in_windows,
    block_of,
    cut,
    merge,
    norm,
    partition,
    reverse,
    roll,
    unpad,
)

PLAIN = "LayerNorm MHAInProjection ScaledDotProductAttention Linear"
NO_REVERSE = "LayerNorm SwinWindowPartition MHAInProjection SwinAttention Linear"
PARTITION, REVERSE = "SwinWindowPartition", "SwinWindowReverse"

WHOLE = Block()
SHIFTED = Block(shift=(1, 2))
COVERING = Block(map=(2, 3))


def _bands(net: Net, y: str, block: Block) -> str:
    """Windows of three rows and of one."""
    y = net.op("Gather", y, np.array([0, 2, 1, 3, 4, 5]), axis=1)
    return cut(net, y, block)


def _column_major(net: Net, y: str, block: Block) -> str:
    (rows, columns), (height, width) = block.map, block.window
    y = net.op("Reshape", y, [-1, rows // height, height, columns // width, width, WIDTH])
    y = net.op("Transpose", y, perm=[0, 3, 1, 2, 4, 5])
    return net.op("Reshape", y, [-1, block.tokens, WIDTH])


def _grid(net: Net, y: str, block: Block) -> str:
    """MaxViT's grid attention: each window takes every third row and column."""
    (rows, columns), (height, width) = block.map, block.window
    y = net.op("Reshape", y, [-1, height, rows // height, width, columns // width, WIDTH])
    y = net.op("Transpose", y, perm=[0, 2, 4, 1, 3, 5])
    return net.op("Reshape", y, [-1, block.tokens, WIDTH])


def _flattened(net: Net, y: str, block: Block) -> str:
    """All of the map attends to all of it, as in a hybrid of convolutions and attention."""
    return net.op("Reshape", y, [-1, block.tokens, WIDTH])


def _unflattened(net: Net, y: str, block: Block) -> str:
    return net.op("Reshape", y, [-1, *block.map, WIDTH])


def _channels_turned(net: Net, y: str, block: Block) -> str:
    return cut(net, net.op("Gather", y, np.arange(WIDTH)[::-1].copy(), axis=3), block)


def _cropped(net: Net, y: str, block: Block) -> str:
    """The first row of the map falls away."""
    y = net.op("Slice", y, [1], [FAR], [1])
    return cut(net, net.op("Pad", y, [0, 0, 0, 0, 0, 1, 0, 0]), block)


@dataclass(frozen=True)
class Row:
    reason: str
    build: Callable[[Net], str | tuple[str, ...]]


def _inner_output(net: Net) -> tuple[str, ...]:
    x = SHIFTED.feed(net)
    rolled = roll(net, norm(net, x), SHIFTED.shift)
    y = attend_in_windows(net, cut(net, rolled, SHIFTED), SHIFTED)
    return net.op("Add", x, reverse(net, y, SHIFTED)), rolled


def _merged_output(net: Net) -> tuple[str, ...]:
    x = SHIFTED.feed(net)
    y = attend_in_windows(net, partition(net, norm(net, x), SHIFTED), SHIFTED)
    y = merge(net, y, SHIFTED)
    return net.op("Add", x, roll(net, y, (-1, -2))), y


def _merged_twice(net: Net) -> str:
    x = SHIFTED.feed(net)
    y = attend_in_windows(net, partition(net, norm(net, x), SHIFTED), SHIFTED)
    y = merge(net, y, SHIFTED)
    return net.op("Add", net.op("Add", x, roll(net, y, (-1, -2))), net.op("Exp", y))


def _dynamic_map(net: Net) -> str:
    """Height and width are divided by the window in the graph."""
    x = net.input("x", 2, "height", "width", WIDTH)
    y = norm(net, x)
    sizes = net.op("Slice", net.op("Shape", y), [1], [3])
    h, w = net.op("Split", sizes, [1, 1], outputs=2)
    rows, columns = net.op("Div", h, [2]), net.op("Div", w, [2])
    window = WHOLE.but(map=(2, 2), window=(2, 2))

    def shaped(y: str, *shape: Any) -> str:
        sizes = [s if isinstance(s, str) else np.array([s]) for s in shape]
        return net.op("Reshape", y, net.op("Concat", *sizes, axis=0))

    y = shaped(y, 2, rows, 2, columns, 2, WIDTH)
    y = shaped(net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), -1, 4, WIDTH)
    y = shaped(attend_in_windows(net, y, window), 2, rows, columns, 2, 2, WIDTH)
    return net.op("Add", x, shaped(net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), 2, h, w, WIDTH))


def _vision_transformer(net: Net, *, turned: bool) -> str:
    """Of batch 1; nn.MultiheadAttention turns it to [tokens, 1, channels], which is no window."""
    x = net.input("x", 1, 5, WIDTH)
    y = norm(net, x)
    if turned:
        y = net.op("Reshape", net.op("Transpose", y, perm=[1, 0, 2]), [1, 5, WIDTH])
    return net.op("Add", x, whole(net, packed(net, y)))


PARTITION_MISSES = {
    "unequal windows": Row(
        "another layout than windows of 6 tokens", lambda n: block_of(n, WHOLE, _bands)
    ),
    "windows column by column": Row(
        "another layout than windows of 6 tokens", lambda n: block_of(n, WHOLE, _column_major)
    ),
    "a grid": Row("another layout than windows of 6 tokens", lambda n: block_of(n, WHOLE, _grid)),
    "a row cropped": Row(
        "another layout than windows of 6 tokens", lambda n: block_of(n, WHOLE, _cropped)
    ),
    "channels turned": Row(
        "tokens whose channels are moved", lambda n: block_of(n, WHOLE, _channels_turned)
    ),
    "the rolled map is an output": Row("of the partition used elsewhere", _inner_output),
    "a ViT": Row(
        "no layout between the map and its projection",
        lambda n: _vision_transformer(n, turned=False),
    ),
    "a ViT of batch 1, tokens in front": Row(
        "a plain reshape, and no position bias", lambda n: _vision_transformer(n, turned=True)
    ),
    "height and width are dynamic": Row(
        "a partition that cannot be probed: its layout is computed by the model", _dynamic_map
    ),
    "one window without position bias": Row(
        "a plain reshape, and no position bias",
        lambda n: block_of(n, COVERING.but(biased=False), _flattened, _unflattened),
    ),
}


@pytest.mark.parametrize("name", PARTITION_MISSES)
def test_no_partition(name: str) -> None:
    row = PARTITION_MISSES[name]
    proto = proto_of(row.build)
    plan, misses = found_in(proto)
    assert kinds(plan) == PLAIN
    assert any(row.reason in reason for reason in reasons(misses, PARTITION)), misses
    assert_collapses(proto, plan)


def _unrolled(net: Net, y: str, block: Block) -> str:
    return unpad(net, merge(net, y, block), block)


def _rolled_too_far(net: Net, y: str, block: Block) -> str:
    return reverse(net, y, block.but(shift=(2, 1)))


REVERSE_MISSES = {
    "a roll without its inverse": Row(
        "another layout than the exact inverse of the partition",
        lambda n: block_of(n, SHIFTED, back=_unrolled),
    ),
    "another roll": Row(
        "another layout than the exact inverse of the partition",
        lambda n: block_of(n, SHIFTED, back=_rolled_too_far),
    ),
    "the merged map is an output": Row("several tensors behind the Linear", _merged_output),
    "the merged map is read elsewhere": Row("several tensors behind the Linear", _merged_twice),
}


@pytest.mark.parametrize("name", REVERSE_MISSES)
def test_no_reverse(name: str) -> None:
    """The partition stands by itself."""
    row = REVERSE_MISSES[name]
    proto = proto_of(row.build)
    plan, misses = found_in(proto)
    assert kinds(plan) == NO_REVERSE
    assert any(row.reason in reason for reason in reasons(misses, REVERSE)), misses
    assert_collapses(proto, plan)
