"""Small Swin blocks: a map cut into windows, attention inside each, and the way back.

The pieces are those of the exporters: a roll is two Slices and a Concat, padding one Pad.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from attending import HEADS, WIDTH, Step, three_linears, whole
from building import Net

FAR = 2**31
BATCH = 2


@dataclass(frozen=True)
class Block:
    """One block; the map is [batch, height, width, channels], or flat as transformers has it.

    Attributes:
        map: height and width.
        window: height and width.
        shift: of the roll, up and to the left.
        flat: the map comes and goes as [batch, height·width, channels].
        rolled_first: the roll comes in front of the padding, as in timm.
        biased: a stored bias per head and pair of positions.
        width: channels of the map.
    """

    map: tuple[int, int] = (6, 9)
    window: tuple[int, int] = (2, 3)
    shift: tuple[int, int] = (0, 0)
    batch: int | str = BATCH
    flat: bool = False
    rolled_first: bool = False
    biased: bool = True
    width: int = WIDTH

    @property
    def padded(self) -> tuple[int, int]:
        rows, columns = (n + -n % s for n, s in zip(self.map, self.window, strict=True))
        return rows, columns

    @property
    def tokens(self) -> int:
        return self.window[0] * self.window[1]

    @property
    def count(self) -> int:
        return self.padded[0] * self.padded[1] // self.tokens

    def but(self, **changes: Any) -> Block:
        return replace(self, **changes)

    def feed(self, net: Net) -> str:
        shape = (self.map[0] * self.map[1],) if self.flat else self.map
        return net.input("x", self.batch, *shape, self.width)


def roll(net: Net, y: str, shift: tuple[int, int]) -> str:
    """Up and to the left by `shift`; negative numbers go back."""
    for axis, by in enumerate(shift, 1):
        if by:
            parts = net.op("Slice", y, [by], [FAR], [axis]), net.op("Slice", y, [0], [by], [axis])
            y = net.op("Concat", *parts, axis=axis)
    return y


def pad(net: Net, y: str, block: Block) -> str:
    rows, columns = (p - n for p, n in zip(block.padded, block.map, strict=True))
    if rows or columns:
        y = net.op("Pad", y, [0, 0, 0, 0, 0, rows, columns, 0], 0.0)
    return y


def cut(net: Net, y: str, block: Block) -> str:
    """[batch, height, width, channels] to [batch·windows, tokens, channels]."""
    (rows, columns), (height, width) = block.padded, block.window
    y = net.op("Reshape", y, [-1, rows // height, height, columns // width, width, block.width])
    y = net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5])
    return net.op("Reshape", y, [-1, block.tokens, block.width])


def merge(net: Net, y: str, block: Block) -> str:
    (rows, columns), (height, width) = block.padded, block.window
    y = net.op("Reshape", y, [-1, rows // height, columns // width, height, width, block.width])
    y = net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5])
    return net.op("Reshape", y, [-1, rows, columns, block.width])


def unpad(net: Net, y: str, block: Block) -> str:
    if block.padded != block.map:
        y = net.op("Slice", y, [0, 0], list(block.map), [1, 2])
    return y


def partition(net: Net, x: str, block: Block) -> str:
    """From the map to the windows."""
    if block.flat:
        x = net.op("Reshape", x, [-1, *block.map, block.width])
    if block.rolled_first:
        return cut(net, pad(net, roll(net, x, block.shift), block), block)
    return cut(net, roll(net, pad(net, x, block), block.shift), block)


def reverse(net: Net, y: str, block: Block) -> str:
    """From the windows to the map."""
    y = merge(net, y, block)
    back = -block.shift[0], -block.shift[1]
    if block.rolled_first:
        y = roll(net, unpad(net, y, block), back)
    else:
        y = unpad(net, roll(net, y, back), block)
    if block.flat:
        y = net.op("Reshape", y, [-1, block.map[0] * block.map[1], block.width])
    return y


def bias(block: Block) -> Step:
    """A stored position bias, and where the block is shifted the mask of each window."""

    def step(net: Net, y: str) -> str:
        if block.biased:
            y = net.op("Add", y, net.draw(1, HEADS, block.tokens, block.tokens))
        if block.shift == (0, 0):
            return y
        size = [HEADS, block.tokens, block.tokens]
        y = net.op("Reshape", y, [-1, block.count, *size])
        y = net.op("Add", y, net.draw(1, block.count, 1, block.tokens, block.tokens))
        return net.op("Reshape", y, [-1, *size])

    return step


def norm(net: Net, x: str) -> str:
    return net.op("LayerNormalization", x, net.positive(WIDTH), net.draw(WIDTH), axis=-1)


def attend_in_windows(net: Net, y: str, block: Block) -> str:
    return whole(net, three_linears(net, y), between=bias(block))


def swin(net: Net, block: Block = Block()) -> str:
    """x + reverse(attention(partition(norm(x))))."""
    x = block.feed(net)
    y = attend_in_windows(net, partition(net, norm(net, x), block), block)
    return net.op("Add", x, reverse(net, y, block))


Cut = Callable[[Net, str, Block], str]


def block_of(
    net: Net, block: Block, to: Cut = partition, back: Cut = reverse, more: str = ""
) -> str | tuple[str, ...]:
    """A block with another partition or reverse; `more` names a value that is an output too."""
    x = block.feed(net)
    windows = to(net, norm(net, x), block)
    y = attend_in_windows(net, windows, block)
    result = back(net, y, block)
    named = {"windows": windows, "attended": y, "map": result}
    out = net.op("Add", x, result)
    return (out, named[more]) if more else out
