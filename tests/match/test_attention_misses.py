"""What looks like attention and is none, or whose projection is none: each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from attending import (
    BATCH,
    HEADS,
    SELF,
    SIZE,
    TOKENS,
    WIDTH,
    Operands,
    assert_collapses,
    attend,
    found_in,
    kinds,
    linear,
    merged,
    packed,
    proto_of,
    reasons,
    scaled,
    self_attention,
    split_heads,
    three_linears,
    tokens,
    whole,
)
from building import Net

from fusewright.match import scene

PROJECTION, CORE = "MHAInProjection", "ScaledDotProductAttention"
Build = Callable[[Net], "str | tuple[str, ...]"]


@dataclass(frozen=True)
class Row:
    build: Build
    reason: str


def _operands(net: Net, **other: Callable[[Net, str], str]) -> Operands:
    """Three Linears split into heads; `other` says how q, k or v are made instead."""
    x = tokens(net)
    parts = {}
    for name in "qkv":
        usual = lambda n, y, k=name == "k": split_heads(n, linear(n, y), turned=k)  # noqa: E731
        parts[name] = other.get(name, usual)(net, x)
    return Operands(**parts)


def _with(**other: Callable[[Net, str], str]) -> Build:
    return lambda n: whole(n, _operands(n, **other))


def _between(step: Callable[[Net, str], str]) -> Build:
    return lambda n: self_attention(n, between=step)


def _leaking(at: str, *, output: bool = False) -> Build:
    """A value of the core that something else reads, or that is an output of the model."""
    leaked: list[str] = []

    def leak(name: str) -> Callable[[Net, str], str]:
        def step(net: Net, y: str) -> str:
            if name == at:
                leaked.append(y if output else net.op("Exp", y))
            return scaled(net, y) if name == "scores" else y

        return step

    def build(net: Net) -> tuple[str, ...]:
        leaked.clear()
        y = self_attention(net, between=leak("scores"), behind=leak("probabilities"))
        return y, *leaked

    return build


# No core, and so no projection.
CORES: dict[str, Row] = {
    "Softmax over the queries": Row(lambda n: self_attention(n, axis=2), "a Softmax over axis 2"),
    "Softmax over the heads": Row(lambda n: self_attention(n, axis=1), "a Softmax over axis 1"),
    "Softmax over axis -2": Row(lambda n: self_attention(n, axis=-2), "a Softmax over axis -2"),
    "a scale that is data": Row(
        _between(lambda n, y: n.op("Mul", y, n.input("s", 1))),
        "expected a stored scale, found the computed tensor 's'",
    ),
    "a scale per query": Row(
        _between(lambda n, y: n.op("Mul", y, n.positive(TOKENS))),
        f"expected a stored scale, found a constant of shape [{TOKENS}]",
    ),
    "a mask that is multiplied": Row(
        _between(lambda n, y: n.op("Mul", y, n.input("m", TOKENS, TOKENS))),
        "expected a stored scale, found the computed tensor 'm'",
    ),
    "a mask that fills with data": Row(
        _between(lambda n, y: n.op("Where", n.input("m", TOKENS, dtype=bool), y, n.input("f", 1))),
        "expected a stored tensor, found the computed tensor 'f'",
    ),
    "another function of the scores": Row(
        _between(lambda n, y: n.op("Sqrt", n.op("Abs", y))), "found Sqrt"
    ),
    "scores read elsewhere": Row(_leaking("scores"), "used elsewhere"),
    "scores that are an output": Row(_leaking("scores", output=True), "used elsewhere"),
    "probabilities read elsewhere": Row(_leaking("probabilities"), "used elsewhere"),
    "probabilities that are an output": Row(
        _leaking("probabilities", output=True), "used elsewhere"
    ),
}


@pytest.mark.parametrize("name", CORES)
def test_no_core(name: str) -> None:
    row = CORES[name]
    proto = proto_of(row.build)
    plan, misses = found_in(proto)
    assert {PROJECTION, CORE}.isdisjoint(plan.counts())
    assert any(row.reason in reason for reason in reasons(misses, CORE))
    # The product with v is listed with that reason, not with what any other group would want.
    assert any(row.reason in entry.reason for entry in plan.unclaimed)
    assert_collapses(proto, plan)


def _norm(net: Net, y: str) -> str:
    return net.op("LayerNormalization", y, net.positive(SIZE), net.draw(SIZE), axis=-1)


def _other_order(net: Net, x: str) -> str:
    """v of the tokens from the last to the first."""
    y = net.op("Slice", linear(net, x), [-1], [-TOKENS - 1], [1], [-1])
    return split_heads(net, y)


def _other_batch(net: Net, x: str) -> str:
    y = net.op("Gather", linear(net, x), np.array([1, 0]), axis=0)
    return split_heads(net, y)


def _across_tokens(net: Net, x: str) -> str:
    """Heads cut through the tokens: a row of v holds elements of several."""
    return net.op("Reshape", linear(net, x), [BATCH, HEADS, TOKENS, SIZE])


def _padded(net: Net, x: str) -> str:
    """A zero in front of the keys, as add_zero_attn of nn.MultiheadAttention has it."""
    return net.op("Pad", split_heads(net, linear(net, x)), np.array([0, 0, 1, 0, 0, 0, 0, 0]))


def _zero_attention(net: Net) -> str:
    o = _operands(net, k=_padded, v=_padded)
    return whole(net, Operands(o.q, net.op("Transpose", o.k, perm=[0, 1, 3, 2]), o.v))


def _packed_output(net: Net) -> tuple[str, str]:
    y = linear(net, tokens(net), 3 * WIDTH)
    parts = net.op("Split", y, [WIDTH] * 3, outputs=3, axis=2)
    k = split_heads(net, parts[1], turned=True)
    q, v = (split_heads(net, parts[i]) for i in (0, 2))
    return whole(net, Operands(q, k, v)), y


def _computed_layout(net: Net, x: str) -> str:
    nothing = net.op("Cast", net.op("Mul", net.op("ReduceMax", x, keepdims=0), 0.0), to=7)
    shape = net.op("Add", nothing, [BATCH, TOKENS, HEADS, SIZE])
    y = net.op("Reshape", linear(net, x), shape)
    return net.op("Transpose", y, perm=[0, 2, 1, 3])


def _mixed_heads(net: Net) -> str:
    """Two heads of k read the columns of one of q: no head has a partner of its own."""
    x = tokens(net)
    q = split_heads(net, linear(net, x))
    q = net.op("Concat", q, q, axis=1)
    k = split_heads(net, linear(net, x, 2 * WIDTH), heads=2 * HEADS)
    v = split_heads(net, linear(net, x, 2 * WIDTH), heads=2 * HEADS)
    y = attend(net, Operands(q, net.op("Transpose", k, perm=[0, 1, 3, 2]), v))
    return net.op("Flatten", y)


def _past(net: Net) -> str:
    """A decoder's cache."""
    o = _operands(net)
    k = net.op("Concat", net.input("past_k", BATCH, HEADS, SIZE, 3), o.k, axis=3)
    v = net.op("Concat", net.input("past_v", BATCH, HEADS, 3, SIZE), o.v, axis=2)
    return whole(net, Operands(o.q, k, v))


def _turned(net: Net, x: str) -> str:
    """y·cos + rotated(y)·sin."""
    y = split_heads(net, linear(net, x))
    halves = net.op("Split", y, [SIZE // 2] * 2, outputs=2, axis=-1)
    rotated = net.op("Concat", net.op("Neg", halves[1]), halves[0], axis=-1)
    parts = (net.op("Mul", part, net.draw(TOKENS, SIZE)) for part in (y, rotated))
    return net.op("Add", *parts)


# A core, whose projection is none.
PROJECTIONS: dict[str, Row] = {
    "a norm of q": Row(
        _with(q=lambda n, x: _norm(n, split_heads(n, linear(n, x)))),
        "found q from LayerNormalization 'LayerNormalization_",
    ),
    "an activation of v": Row(
        _with(v=lambda n, x: split_heads(n, n.op("Relu", linear(n, x)))),
        "found v from Relu 'Relu_",
    ),
    "k is an input": Row(
        _with(k=lambda n, x: n.input("k", BATCH, HEADS, SIZE, TOKENS)),
        "found k from an input, not from a Linear through layout alone",
    ),
    "q from two tensors": Row(
        _with(q=lambda n, x: _joined(n, linear(n, x), n.input("class", BATCH, 1, WIDTH))),
        "found q from 2 tensors, not from a Linear through layout alone",
    ),
    "k and v behind those of earlier steps": Row(_past, "found k from 2 tensors"),
    "rotary positions": Row(_with(q=lambda n, x: _turned(n, x)), "found q from Add 'Add_"),
    "a bias of one element": Row(
        _with(q=lambda n, x: split_heads(n, n.op("Add", n.op("MatMul", x, _matrix(n)), 0.5))),
        "found q from Add 'Add_",
    ),
    "v of other tokens": Row(_with(v=_other_order), "found v of other positions than k"),
    "v of another sample": Row(_with(v=_other_batch), "found v of other positions than k"),
    "v cut through the tokens": Row(
        _with(v=_across_tokens), "heads of v that mix rows and columns"
    ),
    "q cut through the tokens": Row(
        _with(q=_across_tokens), "heads of q that mix rows and columns"
    ),
    "zeros in front of the keys": Row(_zero_attention, "heads of k that mix rows and columns"),
    "the packed projection is an output": Row(_packed_output, "used elsewhere"),
    "a layout that is computed": Row(
        _with(v=_computed_layout), "the heads of v: its layout is computed by the model"
    ),
    "a head of q for two of k": Row(_mixed_heads, "a head of q with several of k and v"),
}


def _matrix(net: Net) -> str:
    return net.draw(WIDTH, WIDTH)


def _joined(net: Net, y: str, other: str) -> str:
    y = net.op("Concat", other, net.op("Slice", y, [1], [TOKENS], [1]), axis=1)
    return split_heads(net, y)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_no_projection(name: str) -> None:
    row = PROJECTIONS[name]
    proto = proto_of(row.build)
    plan, misses = found_in(proto)
    assert PROJECTION not in plan.counts()
    assert CORE in kinds(plan).split()
    assert any(row.reason in reason for reason in reasons(misses, PROJECTION)), reasons(
        misses, PROJECTION
    )
    assert not plan.unclaimed, "its Linears are groups of their own"
    assert_collapses(proto, plan)


def _cache(net: Net) -> tuple[str, ...]:
    """GPT-2: k and v are outputs of the model, for the next step."""
    o = packed(net, tokens(net))
    return whole(net, o), o.v


def _queries_twice(net: Net) -> str:
    o = three_linears(net, tokens(net))
    return merged(net, net.op("Add", attend(net, o), net.op("Mul", o.q, net.input("s", 1))))


@pytest.mark.parametrize("build", [_cache, _queries_twice], ids=["v is an output", "q read twice"])
def test_what_the_core_reads_is_not_interior_to_the_projection(build: Build) -> None:
    proto = proto_of(build)
    plan, _ = found_in(proto)
    assert kinds(plan) == SELF
    assert_collapses(proto, plan)


def test_of_a_large_batch_two_samples_are_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "LARGEST_PROBE", 2 * TOKENS * 3 * WIDTH)
    plan, _ = found_in(proto_of(lambda n: whole(n, three_linears(n, tokens(n, 64)))))
    assert kinds(plan) == SELF
    (heads,) = [g.details["heads"] for g in plan.groups if g.kind == PROJECTION]
    assert heads == HEADS


def test_more_elements_than_are_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "LARGEST_PROBE", BATCH * TOKENS * WIDTH - 1)
    plan, misses = found_in(proto_of(lambda n: whole(n, three_linears(n, tokens(n)))))
    assert PROJECTION not in plan.counts()
    reason = f"of shape {[BATCH, TOKENS, WIDTH]} is too large to probe: a smaller batch"
    assert any(reason in found for found in reasons(misses, PROJECTION))
