"""GPTQ: rounding a matrix row by row, each row's error made up for by the rows still to come.

For the error of the layer's output, ‖X·W − X·Ŵ‖² = tr(Δᵀ H Δ) with H = XᵀX. Once the weights of
an input channel are rounded, the change of all later ones that makes up best for it follows from
the inverse of H over those; all these inverses are read off one Cholesky factor of H⁻¹.

Frantar et al., GPTQ, https://arxiv.org/abs/2210.17323, section 3. Written from the paper; rows are
taken in their own order, as blocks of input channels share scales.
"""

from __future__ import annotations

import numpy as np

from fusewright.errors import DataError
from fusewright.quantize.int4.blocks import INT4_MAX, INT4_MIN, BlockWeight
from fusewright.quantize.int4.clipping import clipped_scales

# Times the damping may grow tenfold before moments count as broken.
_ATTEMPTS = 4
_SMALL = 64


def inverse_factor(moments: np.ndarray, damping: float) -> np.ndarray:
    """U, upper triangular, with Uᵀ·U = (H + λI)⁻¹; λ is `damping` times the mean of H's diagonal.

    Args:
        moments: H up to a factor, [K, K].
        damping: above 0; a channel that is zero on all samples gets λ alone, and is rounded by
            itself.

    Returns:
        float32 [K, K], row i divided by its diagonal behind the diagonal is what a row's error
        costs the later ones.

    Raises:
        DataError: H is not a matrix of second moments.
    """
    exact = np.asarray(moments, np.float64)
    step = damping * (float(np.mean(np.diag(exact))) or 1.0)
    for attempt in range(_ATTEMPTS):
        damped = exact + step * 10.0**attempt * np.eye(len(exact))
        try:
            # H = R·Rᵀ with R upper triangular, from the factor of H with its channels reversed;
            # then R⁻¹ is the factor wanted, and H itself is never inverted.
            lower = np.linalg.cholesky(damped[::-1, ::-1])
            return _inverse_of_upper(lower[::-1, ::-1]).astype(np.float32)
        except np.linalg.LinAlgError:
            continue
    raise DataError("second moments of a layer's input are not positive: no GPTQ for its weight")


def _inverse_of_upper(matrix: np.ndarray) -> np.ndarray:
    """By halves: NumPy has no triangular solver, and its general one takes eight times as long."""
    size = len(matrix)
    if size <= _SMALL:
        return np.asarray(np.triu(np.linalg.inv(matrix)))
    half = size // 2
    result = np.zeros_like(matrix)
    first, last = (_inverse_of_upper(matrix[p, p]) for p in (slice(half), slice(half, None)))
    result[:half, :half], result[half:, half:] = first, last
    result[:half, half:] = -first @ (matrix[:half, half:] @ last)
    return result


def gptq(weight: np.ndarray, moments: np.ndarray, block: int, damping: float = 0.01) -> BlockWeight:
    """Rounds a matrix [K, N].

    A block's scales are found when its first row is reached, for the values it has by then. A row
    counts there with what its error costs once the later rows have made up for it, 1/U_ii²: by H
    itself blocks are clipped too much (vit_mnist_ts13, blocks of 32: 30.9 dB, 31.7 so).

    Args:
        weight: float32 [K, N].
        moments: of the layer's input, [K, K].
        block: input channels that share a scale; divides K.
        damping: as `inverse_factor` takes it.
    """
    factor = inverse_factor(moments, damping)
    costs = 1.0 / np.square(np.diag(factor))
    rest = weight.astype(np.float32)
    codes = np.empty(rest.shape, np.int8)
    scales = np.empty((len(rest) // block, rest.shape[1]), np.float32)
    for number, start in enumerate(range(0, len(rest), block)):
        stop = start + block
        inside = slice(start, stop)
        scales[number] = clipped_scales(rest[inside], costs[inside], block)[0]
        errors = _round_block(rest[inside], codes[inside], scales[number], factor[inside, inside])
        rest[stop:] -= factor[inside, stop:].T @ errors
    return BlockWeight(codes, scales)


def _round_block(
    rest: np.ndarray, codes: np.ndarray, scale: np.ndarray, factor: np.ndarray
) -> np.ndarray:
    """Rounds the rows of one block, `rest` and `codes` in place; their errors over U's diagonal."""
    errors = np.empty_like(rest)
    for i, row in enumerate(rest):
        codes[i] = np.clip(np.rint(row / scale), INT4_MIN, INT4_MAX)
        errors[i] = (row - codes[i] * scale) / factor[i, i]
        rest[i + 1 :] -= factor[i, i + 1 :, None] * errors[i]
    return errors
