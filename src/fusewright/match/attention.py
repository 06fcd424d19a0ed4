"""The attention core, softmax(q·kᵀ)·v, with scale, masks and guards in every spelling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import rank_of
from fusewright.match.matcher import Match
from fusewright.match.pattern import (
    Const,
    Pattern,
    chain,
    const,
    extra,
    maybe,
    number,
    one_of,
    op,
    optional,
    var,
)
from fusewright.match.scene import Scene


def _is_small(tensor: gs.Constant) -> bool:
    return int(np.prod(tensor.shape)) <= 1 or tensor.shape[-1] == 1


def _factor() -> Pattern:
    # A pattern that stands in two places is one value: each place has its own.
    return one_of(
        const(test=lambda t: int(np.prod(t.shape)) == 1, expected="a stored scale"),
        Const("scale", test=_is_small, expected="a stored scale, one or one per head", many=True),
    )


def _scaled(x: Pattern) -> Pattern:
    return chain(x, lambda y: op("Mul|Div", y, _factor()))


def _normalized(x: Pattern) -> Pattern:
    """x/‖x‖ along the last axis, as cosine attention has it."""
    length = op("ReduceL2", x, optional(const()), keepdims=1)
    bounded = one_of(op("Clip|Max", length, const(), optional(const())), length)
    return one_of(
        op("Div", x, maybe("Expand", bounded, extra("shape"))),
        op("LpNormalization", x, p=2, axis=-1),
    )


def _operand(name: str) -> Pattern:
    x = var(name)
    length_one = _normalized(x)
    turned = op("Transpose", length_one, name=f"{name}_turned")
    return _scaled(one_of(turned, length_one, x))


def _score_step(y: Pattern) -> Pattern:
    """What may stand between q·kᵀ and the Softmax: scale, bias, masks, soft cap."""
    return one_of(
        op("Mul|Div", y, _factor()),
        op("Add", y, extra("mask")),
        op("Where", extra("mask"), y, const()),
        op("Where", extra("mask"), const(), y),
        op("Reshape", y, extra("shape")),
        op("Max", y, const()),
        op("Cast|Tanh|Identity", y),
    )


def _probabilities() -> Pattern:
    scores = chain(op("MatMul", _operand("q"), _operand("k"), name="scores"), _score_step)
    softmax = op("Softmax", scores, name="softmax")
    # PyTorch returns zeros, not NaN, for a row that is masked out wholly.
    guarded = op("Where", op("IsNaN", softmax), number(0.0), softmax)
    return chain(
        one_of(guarded, softmax),
        lambda y: one_of(op("Cast|Identity", y), op("Reshape", y, extra("shape"))),
    )


_ATTEND = op("MatMul", _probabilities(), var("v"), name="attend")
# Rows that are masked out wholly may be set to zero behind the product.
CORE = one_of(op("Where", extra("rows"), _ATTEND, number(0.0)), _ATTEND)


def softmax_axis(match: Match) -> str | None:
    """What is wrong with the axis of the core's Softmax, if anything."""
    node = match.named["softmax"]
    axis, rank = node.attrs.get("axis", -1), rank_of(node.outputs[0])
    if axis == -1 or (rank is not None and axis == rank - 1):
        return None
    return f"a Softmax over axis {axis}"


@dataclass
class Attention:
    """One core, and what is found around it."""

    match: Match
    scene: Scene

    @property
    def operands(self) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
        """q, k and v where the core reads them."""
        bound = self.match.tensors
        return bound["q"], bound["k"], bound["v"]

    @property
    def has_turned_keys(self) -> bool:
        """Whether k enters with its last two axes swapped, as q·kᵀ wants it."""
        return "k_turned" not in self.match.named

    @property
    def head_size(self) -> int | str | None:
        """Elements per head that q·kᵀ sums over."""
        shape = self.match.named["scores"].inputs[0].shape
        return None if shape is None else shape[-1]

    @property
    def lengths(self) -> tuple[int | str | None, int | str | None]:
        """Sequence length of the queries, and of keys and values."""
        shape = self.match.named["scores"].outputs[0].shape
        return (None, None) if shape is None else (shape[-2], shape[-1])
