"""Scales of attention, and of any Linear, folded into its weights through the layout between."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from attending import (
    BATCH,
    HEADS,
    MEMORY,
    SIZE,
    TOKENS,
    WIDTH,
    Operands,
    as_it_is,
    linear,
    packed,
    proto_of,
    split_heads,
    three_linears,
    tokens,
    whole,
)
from building import Net
from rewriting import Row, assert_left_alone, by_rule, rewrite, rewritten

from fusewright.graph.walk import values

Build = Callable[[Net], "str | tuple[str, ...]"]


def _one(op: str, scale: object) -> Build:
    """Linear, layout, scale, layout."""

    def build(net: Net) -> str:
        y = net.op(op, split_heads(net, linear(net, tokens(net))), scale)
        return net.op("Reshape", y, [-1, SIZE])

    return build


def _scaled_q(net: Net) -> str:
    """torchvision's: Linear(3·width), of which q alone is scaled."""
    o = packed(net, tokens(net))
    return whole(net, Operands(net.op("Mul", o.q, 0.5), o.k, o.v), between=as_it_is)


def _both(net: Net) -> str:
    o = three_linears(net, tokens(net))
    q, k = net.op("Mul", o.q, 0.7), net.op("Div", o.k, 1.3)
    return whole(net, Operands(q, k, o.v), between=lambda n, y: n.op("Mul", y, 0.9))


def _shared_weight(net: Net, *, bias: bool = False) -> str:
    """Two Linears of one matrix, one of them scaled."""
    x, w = tokens(net), net.draw(WIDTH, WIDTH)
    y, z = (net.op("MatMul", source, w) for source in (x, net.op("Exp", net.op("Sigmoid", x))))
    if bias:
        b = net.draw(WIDTH)
        y, z = net.op("Add", y, b), net.op("Add", b, z)
    return net.op("Add", net.op("Mul", y, 0.25), z)


FOLDED: dict[str, Build] = {
    "behind a Linear": lambda n: n.op("Neg", n.op("Mul", linear(n, tokens(n)), 0.3)),
    "behind one without bias": lambda n: n.op(
        "Neg", n.op("Mul", linear(n, tokens(n), bias=False), 0.3)
    ),
    "behind layout": _one("Mul", 0.3),
    "as a Div": _one("Div", 0.3),
    "of one element": _one("Mul", [0.3]),
    "of rank 4": _one("Mul", np.full((1, 1, 1, 1), 0.3, np.float32)),
    "of q alone": _scaled_q,
    "of q, of k and of the scores": _both,
    "of a shared weight": _shared_weight,
    "of a shared weight and bias": lambda n: _shared_weight(n, bias=True),
    "twice": lambda n: n.op("Neg", n.op("Mul", n.op("Mul", linear(n, tokens(n)), 0.3), 1.7)),
    "of a dynamic batch": lambda n: whole(n, three_linears(n, tokens(n, "batch", "length"))),
}


@pytest.mark.parametrize("name", FOLDED)
def test_scale_is_folded(name: str) -> None:
    model, outcomes = rewritten(proto_of(FOLDED[name]))
    assert outcomes["ProjectionScale"].applied
    assert not {"Mul", "Div"} & {node.op for node in model.graph.nodes}


def test_columns_of_others_stay() -> None:
    net = Net()
    proto = net.proto(_scaled_q(net))
    before = next(a for a in net.stored.values() if a.shape == (WIDTH, 3 * WIDTH))
    model, _ = rewrite(proto)
    (after,) = (values(n.inputs[1]) for n in model.graph.nodes[:1])
    assert np.array_equal(after[:, WIDTH:], before[:, WIDTH:])
    assert np.allclose(after[:, :WIDTH], before[:, :WIDTH] * 0.5)


def test_shared_weight_of_the_other_linear_stays() -> None:
    model, _ = rewritten(proto_of(_shared_weight))
    one, other = (values(n.inputs[1]) for n in model.graph.nodes if n.op == "MatMul")
    assert np.allclose(one, other * 0.25)


def _read_twice(net: Net) -> tuple[str, ...]:
    y = split_heads(net, linear(net, tokens(net)))
    return net.op("Neg", net.op("Mul", y, 0.3)), net.op("Exp", y)


def _half_of_it_read(net: Net) -> tuple[str, ...]:
    """The scaled columns and some of theirs by another way."""
    y = linear(net, tokens(net))
    one = net.op("Slice", y, [0], [8], [2])
    return net.op("Neg", net.op("Mul", one, 0.3)), net.op("Exp", net.op("Slice", y, [7], [12], [2]))


def _an_output(at: str) -> Build:
    def build(net: Net) -> tuple[str, ...]:
        x = tokens(net)
        product = net.op("MatMul", x, net.draw(WIDTH, WIDTH))
        y = net.op("Add", product, net.draw(WIDTH))
        q = split_heads(net, y)
        named = {"product": product, "linear": y, "layout": q}
        return net.op("Neg", net.op("Mul", q, 0.3)), named[at]

    return build


def _of(y: Callable[[Net], str], scale: object = 0.3) -> Build:
    return lambda n: n.op("Neg", n.op("Mul", y(n), scale))


def _integers(net: Net) -> str:
    x = net.input("x", 2, 3, dtype=np.int32)
    return net.op(
        "Div", net.op("MatMul", x, np.arange(6, dtype=np.int32).reshape(3, 2)), np.int32(2)
    )


KEPT: dict[str, Row] = {
    "of what no Linear writes": Row(
        _of(lambda n: n.op("Tanh", tokens(n))), "it does not come from a Linear"
    ),
    "behind an activation": Row(
        _of(lambda n: n.op("Tanh", linear(n, tokens(n)))), "it does not come from a Linear"
    ),
    "of two Linears": Row(
        _of(lambda n: n.op("Concat", linear(n, tokens(n)), linear(n, "x"), axis=1)),
        "it does not come from a Linear",
    ),
    "read unscaled too": Row(_read_twice, "it is read unscaled too"),
    "columns read unscaled too": Row(_half_of_it_read, "its columns are read unscaled too"),
    "x·W is an output": Row(_an_output("product"), "it does not come from a Linear"),
    "x·W + b is an output": Row(_an_output("linear"), "its columns are read unscaled too"),
    "what is scaled is an output": Row(_an_output("layout"), "it is an output of the model"),
    "a scale per column": Row(
        _of(lambda n: linear(n, tokens(n)), np.full(WIDTH, 0.3, np.float32)),
        "expected a stored scale",
    ),
    "a computed scale": Row(
        lambda n: n.op("Neg", n.op("Mul", linear(n, tokens(n)), n.input("s", 1))),
        "expected a stored scale",
    ),
    "a scale of higher rank": Row(
        _of(lambda n: linear(n, tokens(n)), np.full((1, 1, 1, 1), 0.3, np.float32)),
        "a scale of higher rank",
    ),
    "the inverse": Row(
        lambda n: n.op("Neg", n.op("Div", 0.3, n.op("Exp", linear(n, tokens(n))))),
        "expected a computed tensor 'x', found a constant",
    ),
    "integers": Row(_integers, "it does not come from a Linear"),
    "a bias of one element": Row(
        _of(lambda n: n.op("Add", linear(n, tokens(n), bias=False), [0.5])),
        "it does not come from a Linear",
    ),
}


def _scores(q: Callable[[Net], str]) -> Build:
    def build(net: Net) -> str:
        k = net.input("k", BATCH, HEADS, SIZE, MEMORY)
        return net.op("Neg", net.op("Mul", net.op("MatMul", q(net), k), 0.3))

    return build


def _scores_twice(net: Net) -> tuple[str, ...]:
    scores = net.op(
        "MatMul", split_heads(net, linear(net, tokens(net))), net.input("k", BATCH, HEADS, SIZE, 7)
    )
    return net.op("Neg", net.op("Mul", scores, 0.3)), net.op("Exp", scores)


def _q_twice(net: Net) -> tuple[str, ...]:
    q = split_heads(net, linear(net, tokens(net)))
    scores = net.op("MatMul", q, net.input("k", BATCH, HEADS, SIZE, 7))
    return net.op("Neg", net.op("Mul", scores, 0.3)), net.op("Exp", q)


NOT_IN_FRONT: dict[str, Row] = {
    "q is an input": Row(
        _scores(lambda n: n.input("q", BATCH, HEADS, TOKENS, SIZE)),
        "q does not come from a Linear through layout alone",
    ),
    "q behind a norm": Row(
        _scores(lambda n: n.op("Softplus", split_heads(n, linear(n, tokens(n))))),
        "q does not come from a Linear through layout alone",
    ),
    "q read elsewhere": Row(_q_twice, "it is read unscaled too"),
    "scores read elsewhere": Row(_scores_twice, "used elsewhere"),
}


@pytest.mark.parametrize(
    ("rule", "row"), by_rule({"ProjectionScale": KEPT, "ScoreScale": NOT_IN_FRONT})
)
def test_scale_is_kept(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)
