"""Scales of Q/DQ pairs in half: positive, and nowhere smaller than what they have to reach."""

from __future__ import annotations

import numpy as np

from fusewright.precision.kinds import HalfKind


def half_scale(scale: np.ndarray, kind: HalfKind) -> np.ndarray:
    """A float32 scale in half: the nearest value, or the next above where half is coarse.

    Down to the smallest normal number, rounding moves 127 steps by a sixteenth of one. Below, the
    steps of half are coarse: a scale rounded down would clip, and one rounded to 0 is an error.

    Args:
        scale: positive, of any shape.
    """
    nearest = kind.round(scale)
    fine = scale >= kind.normal
    steps = np.maximum(np.ceil(np.asarray(scale, np.float64) / kind.subnormal), 1.0)
    return np.where(fine, nearest, kind.round(steps * kind.subnormal)).astype(kind.dtype)
