"""What may stand between q·kᵀ, the Softmax and ·v: every spelling of masks, caps and norms.

The projection is found around each, and the core holds every node between its three products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from attending import (
    BATCH,
    HEADS,
    SELF,
    TOKENS,
    Operands,
    Step,
    as_it_is,
    assert_collapses,
    attend,
    found_in,
    group_of,
    kinds,
    linear,
    merged,
    proto_of,
    scaled,
    self_attention,
    split_heads,
    three_linears,
    tokens,
    whole,
)
from building import Net

LOWEST = float(np.finfo(np.float32).min)
CAUSAL = np.tril(np.ones((TOKENS, TOKENS), bool))
PER_HEAD = (HEADS, 1, 1)


@dataclass(frozen=True)
class Row:
    """A spelling, the operators of the core behind the normalizer, and what of it is not data.

    `inputs` counts those of the call, `stored` the stored tensors behind them.
    """

    between: Step
    ops: str
    behind: Step = as_it_is
    inputs: int = 3
    stored: int = 0


def _mask(net: Net, *shape: int, dtype: type = bool) -> str:
    return net.input("mask", *(shape or (BATCH, 1, 1, TOKENS)), dtype=dtype)


def _window_mask(net: Net, y: str) -> str:
    """Swin: the mask of each window is added to [batch, windows, heads, tokens, tokens]."""
    y = net.op("Reshape", scaled(net, y), [1, BATCH, HEADS, TOKENS, TOKENS])
    y = net.op("Add", y, net.draw(1, BATCH, 1, TOKENS, TOKENS))
    return net.op("Reshape", y, [BATCH, HEADS, TOKENS, TOKENS])


def _soft_cap(net: Net, y: str) -> str:
    """Gemma: c·tanh(scores/c)."""
    return net.op("Mul", net.op("Tanh", net.op("Div", scaled(net, y), 5.0)), 5.0)


def _bias_and_mask(net: Net, y: str) -> str:
    y = net.op("Add", scaled(net, y), net.draw(HEADS, TOKENS, TOKENS))
    return net.op("Add", y, _mask(net, dtype=np.float32))


def _without_nan(net: Net, y: str) -> str:
    """SDPA: a row that is masked out wholly is zero."""
    return net.op("Where", net.op("IsNaN", y), np.float32(0), y)


def _half(net: Net, y: str) -> str:
    return net.op("Cast", y, to=onnx.TensorProto.DOUBLE)


def _float(net: Net, y: str) -> str:
    return net.op("Cast", y, to=onnx.TensorProto.FLOAT)


STEPS: dict[str, Row] = {
    "stored bias": Row(
        lambda n, y: n.op("Add", scaled(n, y), n.draw(HEADS, TOKENS, TOKENS)),
        "MatMul Add Softmax",
        stored=1,
    ),
    "computed bias": Row(
        lambda n, y: n.op("Add", scaled(n, y), n.op("Exp", _mask(n, dtype=np.float32))),
        "MatMul Add Softmax",
        inputs=4,
    ),
    "mask, the scores behind it": Row(
        lambda n, y: n.op("Add", _mask(n, dtype=np.float32), scaled(n, y)),
        "MatMul Add Softmax",
        inputs=4,
    ),
    "stored bias and mask": Row(_bias_and_mask, "MatMul Add Softmax", inputs=4, stored=1),
    "stored causal mask": Row(
        lambda n, y: n.op("Add", scaled(n, y), np.where(CAUSAL, 0, LOWEST).astype(np.float32)),
        "MatMul Add Softmax",
        stored=1,
    ),
    "kept by a boolean mask": Row(
        lambda n, y: n.op("Where", _mask(n), scaled(n, y), np.float32(LOWEST)),
        "MatMul Where Softmax",
        inputs=4,
    ),
    "filled by a boolean mask": Row(
        lambda n, y: n.op("Where", _mask(n), np.float32(LOWEST), scaled(n, y)),
        "MatMul Where Softmax",
        inputs=4,
    ),
    "stored boolean mask": Row(
        lambda n, y: n.op("Where", CAUSAL, scaled(n, y), np.float32(LOWEST)),
        "MatMul Where Softmax",
        stored=1,
    ),
    "mask of windows": Row(_window_mask, "MatMul Reshape Add Softmax", stored=1),
    "NaN guard": Row(scaled, "MatMul Softmax", _without_nan),
    "Cast around the Softmax": Row(
        lambda n, y: _half(n, scaled(n, y)), "MatMul Cast Softmax", _float
    ),
    "Max with the lowest number": Row(
        lambda n, y: n.op("Max", scaled(n, y), np.float32(LOWEST)), "MatMul Max Softmax"
    ),
    "soft cap": Row(_soft_cap, "MatMul Tanh Mul Softmax"),
    "Dropout and Identity": Row(
        lambda n, y: n.op("Identity", scaled(n, y)),
        "MatMul Softmax",
        lambda n, y: n.op("Dropout", y),
    ),
    "probabilities reshaped": Row(
        scaled, "MatMul Softmax Reshape", lambda n, y: _there_and_back(n, y)
    ),
    "Softmax over the last of four axes": Row(scaled, "MatMul Softmax"),
    "a scale per head": Row(
        lambda n, y: n.op("Mul", y, n.positive(*PER_HEAD)), "MatMul Mul Softmax", stored=1
    ),
}


def _there_and_back(net: Net, y: str) -> str:
    y = net.op("Reshape", y, [BATCH * HEADS, TOKENS, TOKENS])
    return net.op("Reshape", y, [BATCH, HEADS, TOKENS, TOKENS])


@pytest.mark.parametrize("name", STEPS)
def test_step(name: str) -> None:
    row = STEPS[name]
    axis = 3 if "axes" in name else -1
    proto = proto_of(lambda n: self_attention(n, between=row.between, behind=row.behind, axis=axis))
    plan, _ = found_in(proto)
    assert kinds(plan) == SELF
    assert plan.unclaimed == []
    core = group_of(plan, "ScaledDotProductAttention")
    assert " ".join(core.ops) == row.ops
    assert (len(core.inputs), len(core.parameters)) == (row.inputs, row.stored)
    assert core.inputs_to_quantize == (0, 1, 2)
    assert_collapses(proto, plan)


def test_rows_that_are_zeroed_behind_the_product() -> None:
    """Where the guard of a mask of -Inf was moved to."""

    def build(net: Net) -> str:
        rows = net.input("rows", BATCH, 1, TOKENS, 1, dtype=bool)
        y = attend(net, three_linears(net, tokens(net)))
        return merged(net, net.op("Where", rows, y, np.float32(0)))

    proto = proto_of(build)
    plan, _ = found_in(proto)
    assert kinds(plan) == SELF
    core = group_of(plan, "ScaledDotProductAttention")
    assert core.ops[-1] == "Where"
    assert core.inputs[3:] == ("rows",)
    (pair,) = core.fixed
    assert (pair.node in core.members, pair.slot) == (True, 0)
    assert pair.node != core.members[-1], "the Softmax is read by the product"
    assert_collapses(proto, plan)


def _length(net: Net, y: str, bound: str) -> str:
    length = net.op("ReduceL2", y, axes=[-1], keepdims=1)
    if bound == "Clip":
        return net.op("Clip", length, 1e-12)
    return net.op("Max", length, 1e-12) if bound == "Max" else length


def _by_length(bound: str, *, expand: bool = False) -> Step:
    """F.normalize, as each exporter writes it."""

    def build(net: Net, y: str) -> str:
        length = _length(net, y, bound)
        if expand:
            length = net.op("Expand", length, net.op("Shape", y))
        return net.op("Div", y, length)

    return build


NORMS: dict[str, Step] = {
    "Clip and Expand (TorchScript)": _by_length("Clip", expand=True),
    "Clip": _by_length("Clip"),
    "Max (dynamo)": _by_length("Max"),
    "no bound": _by_length(""),
    "LpNormalization": lambda n, y: n.op("LpNormalization", y, axis=-1, p=2),
}


def _cosine(net: Net, norm: Step, turned: Sequence[int] | None) -> str:
    x = tokens(net)
    q, k, v = (split_heads(net, linear(net, x)) for _ in range(3))
    k = norm(net, k)
    if turned is not None:
        k = net.op("Transpose", k, perm=list(turned))
    operands = Operands(norm(net, q), k, v)
    return whole(net, operands, between=lambda n, y: n.op("Mul", y, n.positive(*PER_HEAD)))


@pytest.mark.parametrize("normal", [False, True], ids=["as written", "normalized"])
@pytest.mark.parametrize("name", NORMS)
def test_cosine_attention(name: str, normal: bool) -> None:
    """Swin v2: the norms of q and k belong to the core, and the pairs stand behind them."""
    proto = proto_of(lambda n: _cosine(n, NORMS[name], (0, 1, 3, 2)))
    plan, _ = found_in(proto, normal=normal)
    assert kinds(plan) == SELF
    assert plan.unclaimed == []
    core = group_of(plan, "ScaledDotProductAttention")
    norm = "LpNormalization" if name == "LpNormalization" else "Div"
    assert sum(member.startswith(norm) for member in core.members) == 2
    assert core.inputs[:3] == group_of(plan, "MHAInProjection").outputs
    assert core.inputs_to_quantize == (2,)
    assert [slot for _, slot in core.interior] == [0, 1]
    assert_collapses(proto, plan)
