"""Spellings of attention that must be found: how q, k and v come to the core, and what it holds.

Each is laid over the nodes as they are written, and again behind the normalizer; collapsed, the
model computes the same.
"""

from __future__ import annotations

import numpy as np
import pytest
from attending import (
    BATCH,
    HEADS,
    MEMORY,
    SCALE,
    SELF,
    SIZE,
    TOKENS,
    WIDTH,
    Build,
    Operands,
    as_it_is,
    assert_collapses,
    attend,
    found_in,
    group_of,
    kinds,
    linear,
    packed,
    proto_of,
    split_heads,
    three_linears,
    tokens,
    whole,
)
from building import Net

SWAP = [0, 1, 3, 2]
CORE = "ScaledDotProductAttention Linear"


def _turned(net: Net, k: str) -> str:
    return net.op("Transpose", k, perm=SWAP)


def _multi_head(net: Net) -> str:
    """nn.MultiheadAttention: [tokens, batch, 3·width], heads in the batch, q, k and v gathered."""
    y = linear(net, net.op("Transpose", tokens(net), perm=[1, 0, 2]), 3 * WIDTH)
    y = net.op("Unsqueeze", net.op("Reshape", y, [TOKENS, BATCH, 3, WIDTH]), [0])
    y = net.op("Squeeze", net.op("Transpose", y, perm=[3, 1, 2, 0, 4]), [3])
    parts = [net.op("Gather", y, np.int64(i), axis=0) for i in range(3)]
    in_batch = [net.op("Reshape", part, [TOKENS, BATCH * HEADS, SIZE]) for part in parts]
    q, k, v = (net.op("Transpose", part, perm=[1, 0, 2]) for part in in_batch)
    y = attend(net, Operands(q, net.op("Transpose", k, perm=[0, 2, 1]), v))
    y = net.op("Reshape", net.op("Transpose", y, perm=[1, 0, 2]), [TOKENS * BATCH, WIDTH])
    y = net.op("Reshape", linear(net, y), [TOKENS, BATCH, WIDTH])
    return net.op("Transpose", y, perm=[1, 0, 2])


def _split(net: Net) -> str:
    parts = net.op("Split", linear(net, tokens(net), 3 * WIDTH), [WIDTH] * 3, outputs=3, axis=2)
    q, k, v = parts
    k = split_heads(net, k, turned=True)
    return whole(net, Operands(split_heads(net, q), k, split_heads(net, v)))


def _sliced(net: Net) -> str:
    y = net.op("Reshape", linear(net, tokens(net), 3 * WIDTH), [0, 0, 3, HEADS, SIZE])
    y = net.op("Transpose", y, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Squeeze", net.op("Slice", y, [i], [i + 1], [0]), [0]) for i in range(3))
    return whole(net, Operands(q, _turned(net, k), v))


def _by_head(net: Net) -> str:
    """GPT-NeoX: q, k and v of one head lie beside each other."""
    y = net.op("Reshape", linear(net, tokens(net), 3 * WIDTH), [0, 0, HEADS, 3 * SIZE])
    parts = net.op("Split", y, [SIZE] * 3, outputs=3, axis=-1)
    q, k, v = (net.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts)
    return whole(net, Operands(q, _turned(net, k), v))


def _grouped_query(net: Net) -> str:
    """Each of 3 heads of k and v serves 2 of q: transformers' repeat_kv."""
    x, many = tokens(net), 2 * HEADS
    q = net.op("Reshape", linear(net, x, many * SIZE), [0, 0, many, SIZE])
    k, v = (_repeated(net, split_heads(net, linear(net, x))) for _ in range(2))
    q = net.op("Transpose", q, perm=[0, 2, 1, 3])
    y = net.op("Transpose", attend(net, Operands(q, _turned(net, k), v)), perm=[0, 2, 1, 3])
    return net.op("MatMul", net.op("Reshape", y, [0, 0, many * SIZE]), net.draw(many * SIZE, 5))


def _repeated(net: Net, y: str) -> str:
    y = net.op("Expand", net.op("Unsqueeze", y, [2]), [BATCH, HEADS, 2, TOKENS, SIZE])
    return net.op("Reshape", y, [BATCH, 2 * HEADS, TOKENS, SIZE])


def _multi_query(net: Net) -> str:
    """One head of k and v that MatMul spreads over those of q."""
    x = tokens(net)
    k, v = (linear(net, x, SIZE) for _ in range(2))
    k = split_heads(net, k, turned=True, heads=1)
    return whole(net, Operands(split_heads(net, linear(net, x)), k, split_heads(net, v, heads=1)))


def _memory_packed(net: Net) -> str:
    """Cross attention, k and v from one Linear."""
    q = split_heads(net, linear(net, tokens(net)))
    memory = linear(net, tokens(net, length=MEMORY, name="memory"), 2 * WIDTH)
    y = net.op("Reshape", memory, [0, 0, 2, HEADS, SIZE])
    y = net.op("Transpose", y, perm=[2, 0, 3, 1, 4])
    k, v = (net.op("Gather", y, np.int64(i), axis=0) for i in range(2))
    return whole(net, Operands(q, _turned(net, k), v))


def _windows(net: Net) -> str:
    """Batch and windows on an axis each: operands of rank 5."""
    x = net.input("x", BATCH, 7, TOKENS, WIDTH)
    parts = [net.op("Reshape", linear(net, x), [0, 0, 0, HEADS, SIZE]) for _ in range(3)]
    q, k, v = (net.op("Transpose", part, perm=[0, 1, 3, 2, 4]) for part in parts)
    y = attend(net, Operands(q, net.op("Transpose", k, perm=[0, 1, 2, 4, 3]), v))
    y = net.op("Transpose", y, perm=[0, 1, 3, 2, 4])
    return linear(net, net.op("Reshape", y, [0, 0, 0, WIDTH]))


def _keys_by_reshape(net: Net) -> str:
    """torch.export writes k.transpose(-2, -1) of a 4-D tensor as a Transpose of a 3-D one."""
    x = tokens(net)
    q, k, v = (split_heads(net, linear(net, x)) for _ in range(3))
    k = net.op("Transpose", net.op("Reshape", k, [-1, TOKENS, SIZE]), perm=[0, 2, 1])
    k = net.op("Reshape", k, [BATCH, HEADS, SIZE, TOKENS])
    return whole(net, Operands(q, k, v))


def _one_head(net: Net) -> str:
    x = tokens(net)
    q, k, v = (linear(net, x) for _ in range(3))
    return linear(net, attend(net, Operands(q, net.op("Transpose", k, perm=[0, 2, 1]), v)))


def _cross(net: Net) -> str:
    return whole(net, three_linears(net, tokens(net), tokens(net, length=MEMORY, name="memory")))


def _class_token(net: Net) -> str:
    """CaiT: the query is the first token alone."""
    x = tokens(net)
    return whole(net, three_linears(net, net.op("Slice", x, [0], [1], [1]), x))


def _first_query(net: Net) -> str:
    """As above, cut behind the projection."""
    o = three_linears(net, tokens(net))
    return whole(net, Operands(net.op("Slice", o.q, [0], [1], [2]), o.k, o.v))


def _shared(net: Net, *, values: bool) -> str:
    """Reformer: q and k of one Linear; with `values` v too."""
    x = tokens(net)
    q = split_heads(net, linear(net, x))
    v = q if values else split_heads(net, linear(net, x))
    return whole(net, Operands(q, _turned(net, q), v))


def _dynamic(batch: int | str, length: int | str) -> Build:
    return lambda net: whole(net, three_linears(net, tokens(net, batch, length)))


LAYOUTS: dict[str, Build] = {
    "three Linears": lambda n: whole(n, three_linears(n, tokens(n))),
    "three Linears without bias": lambda n: whole(n, three_linears(n, tokens(n), bias=False)),
    "packed, permuted and picked (timm)": lambda n: whole(n, packed(n, tokens(n))),
    "packed, heads in the batch (MultiheadAttention)": _multi_head,
    "packed, Split": _split,
    "packed, Slice and Squeeze": _sliced,
    "packed by head": _by_head,
    "cross attention": _cross,
    "cross attention, k and v packed": _memory_packed,
    "grouped query": _grouped_query,
    "multi query": _multi_query,
    "rank 5": _windows,
    "k turned between Reshapes (dynamo)": _keys_by_reshape,
    "one head, no layout": _one_head,
    "the first token's query": _class_token,
    "the first token's query, cut late": _first_query,
    "q and k are one": lambda n: _shared(n, values=False),
    "q, k and v are one": lambda n: _shared(n, values=True),
    "dynamic batch": _dynamic("batch", TOKENS),
    "dynamic sequence": _dynamic(BATCH, "length"),
    "dynamic batch and sequence": _dynamic("batch", "length"),
}
# Heads of q, head size, queries, keys; what is not as usual.
SIZES = {
    "cross attention": (HEADS, SIZE, [TOKENS, MEMORY]),
    "cross attention, k and v packed": (HEADS, SIZE, [TOKENS, MEMORY]),
    "grouped query": (2 * HEADS, SIZE, [TOKENS]),
    "one head, no layout": (1, WIDTH, [TOKENS]),
    "the first token's query": (HEADS, SIZE, [1, TOKENS]),
    "the first token's query, cut late": (HEADS, SIZE, [1, TOKENS]),
    "dynamic sequence": (HEADS, SIZE, ["length"]),
    "dynamic batch and sequence": (HEADS, SIZE, ["length"]),
}
USUAL = (HEADS, SIZE, [TOKENS])


@pytest.mark.parametrize("normal", [False, True], ids=["as written", "normalized"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, normal: bool) -> None:
    proto = proto_of(LAYOUTS[name])
    plan, _ = found_in(proto, normal=normal)
    assert kinds(plan) == SELF
    assert plan.unclaimed == []
    heads, size, sequence = SIZES.get(name, USUAL)
    assert group_of(plan, "MHAInProjection").details == {"heads": heads}
    core = group_of(plan, "ScaledDotProductAttention")
    assert core.details == {"head_size": size, "sequence": sequence}
    assert_collapses(proto, plan)


def _scaled_inputs(net: Net, of_q: float | None, of_k: float | None) -> str:
    o = three_linears(net, tokens(net))
    q = o.q if of_q is None else net.op("Mul", o.q, of_q)
    k = o.k if of_k is None else net.op("Mul", o.k, of_k)
    return whole(net, Operands(q, k, o.v), between=as_it_is)


def _behind_the_linear(net: Net) -> str:
    x = tokens(net)
    q, k, v = (linear(net, x) for _ in range(3))
    q, k = split_heads(net, net.op("Mul", q, SCALE)), split_heads(net, k, turned=True)
    return whole(net, Operands(q, k, split_heads(net, v)), between=as_it_is)


def _behind_the_scores(op: str, scale: object) -> Build:
    o = three_linears
    return lambda n: whole(n, o(n, tokens(n)), between=lambda m, y: m.op(op, y, scale))


SCALES: dict[str, Build] = {
    "on q": lambda n: _scaled_inputs(n, SCALE, None),
    "on k": lambda n: _scaled_inputs(n, None, SCALE),
    "its root on both (SDPA)": lambda n: _scaled_inputs(n, SCALE**0.5, SCALE**0.5),
    "in front of the split into heads": _behind_the_linear,
    "behind the scores": _behind_the_scores("Mul", SCALE),
    "as a Div": _behind_the_scores("Div", SIZE**0.5),
    "of rank 4": _behind_the_scores("Mul", np.full((1, 1, 1, 1), SCALE, np.float32)),
    "none": lambda n: _scaled_inputs(n, None, None),
}


@pytest.mark.parametrize("normal", [False, True], ids=["as written", "normalized"])
@pytest.mark.parametrize("name", SCALES)
def test_scale(name: str, normal: bool) -> None:
    """As written it belongs to the core, unless layout follows it; normalized it is gone."""
    proto = proto_of(SCALES[name])
    plan, _ = found_in(proto, normal=normal)
    in_front = name == "in front of the split into heads"
    assert kinds(plan) == (SELF if normal or not in_front else "Linear Linear Linear " + CORE)
    assert_collapses(proto, plan)
    if normal:
        assert not {"Mul", "Div"} & {node.op for node in plan.model.graph.nodes}
