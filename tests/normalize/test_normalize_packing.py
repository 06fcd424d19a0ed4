"""Separate projections of one input packed into one: x·Wq, x·Wk, x·Wv → split(x·[Wq Wk Wv])."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attending import (
    MEMORY,
    SIZE,
    WIDTH,
    Operands,
    attend,
    linear,
    merged,
    packed,
    proto_of,
    split_heads,
    three_linears,
    tokens,
    whole,
)
from building import Net
from rewriting import Row, assert_left_alone, by_rule, rewritten

from fusewright.graph.model import Model
from fusewright.graph.walk import is_constant

Build = Callable[[Net], "str | tuple[str, ...]"]


def _matrices(model: Model) -> list[tuple[int, ...]]:
    """Shapes of the stored matrices, in the order of the graph."""
    products = [node for node in model.graph.nodes if node.op == "MatMul"]
    return [tuple(n.inputs[1].shape) for n in products if is_constant(n.inputs[1])]


def _biased(*which: bool) -> Build:
    """Biases on some of the three Linears."""

    def build(net: Net) -> str:
        x = tokens(net)
        q, k, v = (linear(net, x, bias=bias) for bias in which)
        k = split_heads(net, k, turned=True)
        return whole(net, Operands(split_heads(net, q), k, split_heads(net, v)))

    return build


def _cross(net: Net) -> str:
    return whole(net, three_linears(net, tokens(net), tokens(net, length=MEMORY, name="memory")))


def _half_sizes(net: Net) -> str:
    """Multi-query: k and v are narrower than q."""
    x = tokens(net)
    k, v = (linear(net, x, SIZE) for _ in range(2))
    k, v = split_heads(net, k, turned=True, heads=1), split_heads(net, v, heads=1)
    return whole(net, Operands(split_heads(net, linear(net, x)), k, v))


E2, E3 = (WIDTH, 2 * WIDTH), (WIDTH, 3 * WIDTH)
E = (WIDTH, WIDTH)
PACKED: dict[str, tuple[Build, list[tuple[int, ...]]]] = {
    "three": (_biased(True, True, True), [E3, E]),
    "no biases": (_biased(False, False, False), [E3, E]),
    "bias of q alone": (_biased(True, False, False), [E3, E]),
    "no bias of k (BEiT, Whisper)": (_biased(True, False, True), [E3, E]),
    "k and v of cross attention": (_cross, [E, E2, E]),
    "multi query": (_half_sizes, [(WIDTH, WIDTH + 2 * SIZE), E]),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed(name: str) -> None:
    build, shapes = PACKED[name]
    model, outcomes = rewritten(proto_of(build))
    assert len(outcomes["PackedProjection"].applied) == 1
    assert _matrices(model) == shapes
    splits = [node for node in model.graph.nodes if node.op == "Split"]
    assert len(splits) == 1
    # Where every node of the file went is still known.
    assert len(model.origin(splits[0])) >= 2


def _inputs_of_each(net: Net) -> str:
    x = tokens(net)
    q, k, v = (linear(net, source) for source in (x, net.op("Neg", x), net.op("Exp", x)))
    k = split_heads(net, k, turned=True)
    return whole(net, Operands(split_heads(net, q), k, split_heads(net, v)))


def _with_norm(net: Net) -> str:
    o = three_linears(net, tokens(net))
    q = net.op("LayerNormalization", o.q, net.positive(SIZE), net.draw(SIZE))
    return whole(net, Operands(q, o.k, o.v))


def _values_elsewhere(net: Net) -> tuple[str, ...]:
    x = tokens(net)
    q, k, v = (linear(net, x) for _ in range(3))
    y = attend(
        net, Operands(split_heads(net, q), split_heads(net, k, turned=True), split_heads(net, v))
    )
    return merged(net, y), net.op("Exp", v)


UNPACKED: dict[str, Row] = {
    "packed already": Row(
        lambda n: whole(n, packed(n, tokens(n))),
        "its projections are packed, or read other tensors",
    ),
    "an input each": Row(_inputs_of_each, "its projections are packed, or read other tensors"),
    "a norm of q": Row(_with_norm, "q from LayerNormalization"),
    "a Linear read elsewhere": Row(_values_elsewhere, "of the projection used elsewhere"),
    "Softmax over the queries": Row(
        lambda n: whole(n, three_linears(n, tokens(n)), axis=2), "a Softmax over axis 2"
    ),
}


@pytest.mark.parametrize(("rule", "row"), by_rule({"PackedProjection": UNPACKED}))
def test_left_apart(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)


def test_packed_twice_of_one_input() -> None:
    """Two attentions on one tensor: each has a projection of its own."""

    def build(net: Net) -> str:
        x = tokens(net)
        return net.op("Add", whole(net, three_linears(net, x)), whole(net, three_linears(net, x)))

    model, outcomes = rewritten(proto_of(build))
    assert len(outcomes["PackedProjection"].applied) == 2
    assert sorted(_matrices(model)) == [E, E, E3, E3]
