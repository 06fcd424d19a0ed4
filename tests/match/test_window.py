"""Swin's windows found around an attention, from every exporter's spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from attending import (
    WIDTH,
    assert_collapses,
    found_in,
    group_of,
    kinds,
    proto_of,
)
from building import Net
from windows import (
    Block,
    attend_in_windows,
    block_of,
    cut,
    norm,
    partition,
    reverse,
    roll,
    swin,
)

from fusewright.plan.plan import Plan

SWIN = "LayerNorm SwinWindowPartition MHAInProjection SwinAttention Linear SwinWindowReverse"
NO_REVERSE = SWIN.removesuffix(" SwinWindowReverse")
PLAIN = "LayerNorm MHAInProjection ScaledDotProductAttention Linear"
PARTITION, REVERSE = "SwinWindowPartition", "SwinWindowReverse"

WHOLE = Block()
SHIFTED = Block(shift=(1, 2))
PADDED = Block(map=(5, 7))
BOTH = Block(map=(5, 7), shift=(1, 1))
COVERING = Block(map=(2, 3))

Cut = Callable[[Net, str, Block], str]


def _details(block: Block) -> dict[str, Any]:
    padding = [p - n for p, n in zip(block.padded, block.map, strict=True)]
    return (
        {"window": list(block.window), "shift": list(block.shift), "map": list(block.map)}
        | ({"padding": padding} if any(padding) else {})
        | ({"rolls_first": True} if block.rolled_first else {})
    )


BLOCKS = {
    "no shift": WHOLE,
    "shift": SHIFTED,
    "padding": PADDED,
    "padding and shift (torchvision)": BOTH,
    "padding behind the roll (timm)": BOTH.but(rolled_first=True),
    "square": Block(map=(6, 6), window=(3, 3), shift=(1, 1)),
    "a window as high as the map": Block(map=(2, 9)),
    "covering the map": COVERING,
    "flat map (transformers)": SHIFTED.but(flat=True),
    "flat map, padding and shift": BOTH.but(flat=True),
    "flat map, covered": COVERING.but(flat=True),
    "covered, biases of zero (transformers 5.24 untrained)": COVERING.but(flat=True, biased=False),
    "dynamic batch": SHIFTED.but(batch="batch"),
    "dynamic batch, padding": BOTH.but(batch="batch"),
    "dynamic batch, flat map": BOTH.but(batch="batch", flat=True),
    "dynamic batch, covered": COVERING.but(batch="batch"),
    "one map": SHIFTED.but(batch=1),
    "a batch": BOTH.but(batch=7),
    "a batch, flat map": BOTH.but(batch=7, flat=True),
    "a batch as large as a window": SHIFTED.but(batch=6),
    "a batch as high as the map": Block(map=(6, 6), window=(3, 3), batch=6),
}


@pytest.mark.parametrize("normal", [False, True], ids=["as written", "normalized"])
@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str, normal: bool) -> None:
    block = BLOCKS[name]
    proto = proto_of(lambda n: swin(n, block))
    plan, _ = found_in(proto, normal=normal)
    assert kinds(plan) == SWIN
    assert plan.unclaimed == []
    assert group_of(plan, PARTITION).details == _details(block)
    assert group_of(plan, REVERSE).details == _details(block)
    core = group_of(plan, "SwinAttention").details
    assert core["window"] == list(block.window)
    assert core["shift"] == list(block.shift)
    assert core["sequence"] == [block.tokens]
    # The layout between the norm and the residual belongs to the groups.
    left = {n.op for n in plan.model.graph.nodes if n.name not in _members(plan)}
    assert left <= {"Add", "Reshape", "Transpose"}
    assert_collapses(proto, plan)


def _members(plan: Plan) -> set[str]:
    return {member for group in plan.groups for member in group.members}


def _by_gather(net: Net, y: str, block: Block) -> str:
    """The roll as picking rows and columns."""
    for axis in (1, 2):
        index = np.roll(np.arange(block.map[axis - 1]), -block.shift[axis - 1])
        y = net.op("Gather", y, index, axis=axis)
    return cut(net, y, block)


def _viewed_twice(net: Net, y: str, block: Block) -> str:
    """timm: [.., height, width, channels] windows first, then flat."""
    y = net.op("Reshape", cut(net, y, block), [-1, *block.window, WIDTH])
    return net.op("Reshape", y, [-1, block.tokens, WIDTH])


def _by_space_to_depth(net: Net, y: str, block: Block) -> str:
    """Windows side by side through channels-first, as an image's blocks are cut."""
    (rows, columns), (height, width) = block.padded, block.window
    y = net.op("Transpose", y, perm=[0, 3, 1, 2])
    y = net.op("Reshape", y, [-1, WIDTH, rows // height, height, columns // width, width])
    y = net.op("Transpose", y, perm=[0, 2, 4, 3, 5, 1])
    return net.op("Reshape", y, [-1, block.tokens, WIDTH])


def _padded_twice(net: Net, y: str, block: Block) -> str:
    """Rows and columns by a Pad each."""
    one = net.op("Pad", y, [0, 0, 0, 0, 0, block.padded[0] - block.map[0], 0, 0], 0.0)
    two = net.op("Pad", one, [0, 0, 0, 0, 0, 0, block.padded[1] - block.map[1], 0])
    return cut(net, roll(net, two, block.shift), block)


def _rolled_the_other_way(net: Net, y: str, block: Block) -> str:
    """Down and to the right by what is left of the map."""
    shift = block.shift[0] - block.map[0], block.shift[1] - block.map[1]
    return cut(net, roll(net, y, shift), block)


OTHER_PARTITIONS: dict[str, tuple[Block, Cut]] = {
    "roll by Gather": (SHIFTED, _by_gather),
    "windows, then tokens (timm)": (WHOLE, _viewed_twice),
    "through channels first": (WHOLE, _by_space_to_depth),
    "padded twice": (BOTH, _padded_twice),
    "rolled the other way": (SHIFTED, _rolled_the_other_way),
}


@pytest.mark.parametrize("name", OTHER_PARTITIONS)
def test_another_spelling_of_the_partition(name: str) -> None:
    block, to = OTHER_PARTITIONS[name]
    proto = proto_of(lambda n: block_of(n, block, to))
    plan, _ = found_in(proto)
    assert kinds(plan) == SWIN
    assert group_of(plan, PARTITION).details == _details(block)
    assert_collapses(proto, plan)


@pytest.mark.parametrize("more", ["windows", "attended", "map"])
def test_values_between_the_groups_may_be_outputs(more: str) -> None:
    proto = proto_of(lambda n: block_of(n, SHIFTED, more=more))
    plan, _ = found_in(proto)
    assert kinds(plan) == SWIN
    assert_collapses(proto, plan)


def test_two_blocks_one_after_the_other() -> None:
    def build(net: Net) -> str:
        first, second = WHOLE, SHIFTED
        y = swin(net, first)
        z = attend_in_windows(net, partition(net, norm(net, y), second), second)
        return net.op("Add", y, reverse(net, z, second))

    proto = proto_of(build)
    plan, _ = found_in(proto)
    assert kinds(plan) == f"{SWIN} {SWIN}"
    shifts = [g.details["shift"] for g in plan.groups if g.kind == PARTITION]
    assert shifts == [[0, 0], [1, 2]]
    assert_collapses(proto, plan)
