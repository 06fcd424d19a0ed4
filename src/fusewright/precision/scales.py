"""Scales of Q/DQ pairs in half: positive, and nowhere smaller than what they have to reach."""

from __future__ import annotations

import numpy as np

from fusewright.precision.kinds import HalfKind

# Of the rounding of the channels beside it: what is this much less is lost in theirs.
_OF_THE_NEIGHBOURS = 2.0**-5


def half_scale(scale: np.ndarray, kind: HalfKind, divides: bool = False) -> np.ndarray:
    """A float32 scale in half: the nearest value, or the next above where half is coarse.

    Down to the smallest normal number, rounding moves 127 steps by a sixteenth of one. Below, the
    steps of half are coarse: a scale rounded down would clip, and one rounded to 0 is an error.

    Args:
        scale: positive, of any shape.
        divides: something is divided by it in half: its reciprocal has to be finite there.
    """
    nearest = kind.round(scale)
    fine = scale >= kind.normal
    reached = np.maximum(np.asarray(scale, np.float64), _least(kind) if divides else 0.0)
    steps = np.maximum(np.ceil(reached / kind.subnormal), 1.0)
    return np.where(fine, nearest, kind.round(steps * kind.subnormal)).astype(kind.dtype)


def has_reciprocal(scale: np.ndarray, kind: HalfKind) -> bool:
    """Whether the reciprocal of every scale is finite in half."""
    return float(scale.min()) >= _least(kind)


def can_be_coarser(scale: np.ndarray, weight: np.ndarray, axis: int, kind: HalfKind) -> bool:
    """Whether the channels of a weight whose scale has no reciprocal may take the least that has.

    Where a BN has killed a channel, its weights are a thousandth of those beside it (resnet20: a
    scale of 6e-8 among 1e-3). At the least scale of FP16, 1.5e-5, they are off by 8e-6 at most.
    That is lost where the channel in the middle, of those with any weight that is not 0, rounds to
    steps that are 32 times as large.

    Args:
        scale: float32, a vector over `axis` of `weight`.
        weight: float32 or half, of any rank.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    used = scale[np.abs(weight).max(axis=others) > 0]
    return used.size > 0 and _least(kind) <= _OF_THE_NEIGHBOURS * float(np.median(used))


def _least(kind: HalfKind) -> float:
    return 1.0 / kind.maximum
