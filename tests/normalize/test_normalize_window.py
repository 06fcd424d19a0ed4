"""Around Swin's windows: masks that only the batch enlarges, partitions that fell away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attending import (
    HEADS,
    SIZE,
    WIDTH,
    Operands,
    assert_collapses,
    attend,
    found_in,
    kinds,
    linear,
    merged,
    proto_of,
    three_linears,
)
from building import Net
from rewriting import Row, assert_left_alone, by_rule, rewritten
from windows import Block, attend_in_windows, bias, norm, partition, reverse, swin

SWIN = "LayerNorm SwinWindowPartition MHAInProjection SwinAttention Linear SwinWindowReverse"
PLAIN = "LayerNorm MHAInProjection ScaledDotProductAttention Linear"
CUT, COVERING = Block(map=(6, 9)), Block(map=(2, 3))
Build = Callable[[Net], "str | tuple[str, ...]"]


def _cut_block(net: Net, block: Block = CUT) -> str:
    """A block that shows in windows of how many tokens the model attends."""
    return net.op("Sigmoid", swin(net, block.but(batch="batch")))


def _fallen_away(net: Net, tokens: int = 6, *, biased: bool = True) -> tuple[str, str]:
    """A block whose window covers the map, the reshapes of it gone; the map is flat."""
    x = net.input("y", "batch", tokens, WIDTH)
    inside = Block(map=(1, tokens), window=(1, tokens), biased=biased)
    y = attend_in_windows(net, norm(net, x), inside)
    return _cut_block(net), net.op("Add", x, y)


def _of_rank_4(net: Net) -> tuple[str, str]:
    """The same of a map with height and width: onnxslim moves the Linear in front."""
    x = net.input("y", "batch", 2, 3, WIDTH)
    y = norm(net, x)
    q, k, v = (net.op("Reshape", linear(net, y), [-1, 6, HEADS, SIZE]) for _ in range(3))
    turn = [0, 2, 1, 3]
    operands = Operands(
        net.op("Transpose", q, perm=turn),
        net.op("Transpose", k, perm=[0, 2, 3, 1]),
        net.op("Transpose", v, perm=turn),
    )
    heads = attend(net, operands, between=bias(COVERING))
    flat = net.op("Reshape", net.op("Transpose", heads, perm=turn), [-1, 2, 3, WIDTH])
    return _cut_block(net), net.op("Add", x, linear(net, flat))


@pytest.mark.parametrize("build", [_fallen_away, _of_rank_4])
def test_a_covering_window_comes_back(build: Build) -> None:
    proto = proto_of(build)
    plan, _ = found_in(proto)
    assert sorted(kinds(plan).split()) == sorted(f"{SWIN} {SWIN}".split())
    covering = [g for g in plan.groups if g.details.get("map") == g.details.get("window")]
    assert {"SwinWindowPartition", "SwinWindowReverse"} <= {group.kind for group in covering}
    collapsed = assert_collapses(proto, plan)
    names = [node.name for node in collapsed.graph.node]
    assert len(names) == len(set(names))


def test_a_restored_reshape_goes_by_its_linear() -> None:
    """Not by what reads it: naming that would speak of two groups."""
    plan, _ = found_in(proto_of(_fallen_away))
    linears = {n for g in plan.groups if g.kind in ("Linear", "MHAInProjection") for n in g.nodes}
    restored = [g for g in plan.groups if g.details.get("map") == [2, 3]]
    assert [g.kind for g in restored] == ["SwinWindowPartition", "SwinWindowReverse"]
    assert all(set(group.nodes) <= linears for group in restored)


def _no_other(net: Net) -> str:
    x = net.input("y", "batch", 6, WIDTH)
    return net.op("Add", x, attend_in_windows(net, norm(net, x), COVERING))


def _behind_layout(net: Net) -> tuple[str, str]:
    x = net.op("Transpose", net.input("y", "batch", WIDTH, 6), perm=[0, 2, 1])
    return _cut_block(net), attend_in_windows(net, x, COVERING)


NOT_COVERED = {
    "no other windows": Row(_no_other, "no other attention of this model in windows of 6"),
    "windows of another size": Row(
        lambda n: _fallen_away(n, 4), "no other attention of this model in windows of 4"
    ),
    "no position bias": Row(
        lambda n: _fallen_away(n, biased=False), "no stored bias per head and pair"
    ),
    "layout in front": Row(_behind_layout, "layout in front of it"),
}


def _tiled(
    net: Net, *, windows: int = 9, whole: str = "tile", heads: int = 1, more: bool = True
) -> str:
    """transformers' mask: expanded over the batch, windows and batch made one axis."""
    block = CUT.but(batch="batch", shift=(1, 2))
    x = block.feed(net)
    y = partition(net, norm(net, x), block)
    mask = net.draw(1, windows, heads, 6, 6)
    batch = net.op("Shape", x, start=0, end=1)
    target = net.op("Concat", batch, [windows, heads, 6, 6], axis=0)
    mask = net.op("Reshape", net.op("Expand", mask, target), [-1, heads, 6, 6])
    if more:
        mask = net.op("Add", net.draw(1, HEADS, 6, 6), mask)
    scores = attend(net, three_linears(net, y), between=lambda n, s: n.op("Add", s, mask))
    return net.op("Add", x, reverse(net, merged(net, scores), block))


TILED: dict[str, Build] = {
    "the mask alone": lambda n: _tiled(n, more=False),
    "a mask per head": lambda n: _tiled(n, heads=HEADS, more=False),
    "with the position bias": _tiled,
}


@pytest.mark.parametrize("build", TILED.values(), ids=TILED)
def test_a_tiled_mask_is_stored(build: Build) -> None:
    model, outcomes = rewritten(proto_of(build))
    assert len(outcomes["TiledMask"].applied) == 1
    assert not any(node.op in ("Expand", "Shape") for node in model.graph.nodes)
    proto = proto_of(build)
    plan, _ = found_in(proto)
    assert kinds(plan) == SWIN
    assert_collapses(proto, plan)


def _rows_tiled_too(net: Net) -> str:
    scores = net.input("s", "batch", HEADS, 6, 6)
    target = net.op("Concat", net.op("Shape", scores, start=0, end=1), [1, 1, 6, 6], axis=0)
    mask = net.op("Expand", net.draw(1, 1, 1, 1, 6), target)
    return net.op("Add", scores, net.op("Reshape", mask, [-1, 1, 6, 6]))


def _of_rank_3(net: Net) -> str:
    scores = net.input("s", "batch", 6, 6)
    target = net.op("Concat", net.op("Shape", scores, start=0, end=1), [1, 6, 6], axis=0)
    mask = net.op("Expand", net.draw(1, 1, 6, 6), target)
    return net.op("Add", scores, net.op("Reshape", mask, [-1, 6, 6]))


NOT_TILED = {
    "rows enlarged too": Row(_rows_tiled_too, "a mask that more than the batch enlarges"),
    "rank 3": Row(_of_rank_3, "not scores of rank 4 and a mask of rank 5"),
}


@pytest.mark.parametrize(
    ("rule", "row"), by_rule({"CoveringWindow": NOT_COVERED, "TiledMask": NOT_TILED})
)
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)
