"""Scales below the largest magnitude where that lowers the error of the layer's output.

AWQ's search for clipping: of some factors on a block's largest magnitude, the one with the least
error, for each block and column by itself.
"""

from __future__ import annotations

import numpy as np

from fusewright.quantize.int4.blocks import BlockWeight, codes_of, largest, scales_of

# 1 first: among equals nothing is clipped.
_SHRINKS = tuple(np.linspace(1.0, 0.5, 11))


def clipped_scales(weight: np.ndarray, moments: np.ndarray, block: int) -> np.ndarray:
    """Scales of a matrix [K, N] with the least Δᵀ H Δ per block and column.

    Args:
        weight: float32 [K, N].
        moments: H, [K, K], of which the blocks on the diagonal count; or [K], a weight for the
            squared error of each row.
        block: divides K.

    Returns:
        float32 [K / block, N].
    """
    magnitude = largest(weight, block)
    scales = scales_of(magnitude)
    best = np.full(scales.shape, np.inf, np.float32)
    for shrink in _SHRINKS:
        tried = scales_of(magnitude, shrink)
        codes = codes_of(weight, tried, block)
        error = _errors(weight - codes * np.repeat(tried, block, axis=0), moments, block)
        better = error < best
        scales[better], best[better] = tried[better], error[better]
    return scales


def round_clipped(weight: np.ndarray, moments: np.ndarray, block: int) -> BlockWeight:
    """Rounds a matrix to nearest with `clipped_scales`."""
    scales = clipped_scales(weight, moments, block)
    return BlockWeight(codes_of(weight, scales, block), scales)


def _errors(difference: np.ndarray, moments: np.ndarray, block: int) -> np.ndarray:
    """The error of each block and column: [K / block, N]."""
    found = np.empty((len(difference) // block, difference.shape[1]), np.float32)
    for number in range(len(found)):
        inside = slice(number * block, (number + 1) * block)
        part = difference[inside]
        if moments.ndim == 1:
            found[number] = moments[inside] @ np.square(part)
        else:
            found[number] = np.einsum("ij,ij->j", part, moments[inside, inside] @ part)
    return found
