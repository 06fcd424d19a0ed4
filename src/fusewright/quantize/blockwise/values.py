"""Stored matrices in NVFP4 and MXFP8, and what they stand for.

NVFP4 is a 4-bit float (E2M1) times an FP8 scale of 16 values, times one scale of the tensor; MXFP8
is FP8 (E4M3) times a power of two (E8M0) of 32 values. (OCP Microscaling Formats 1.0; TensorRT,
"Quantization Schemes".)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from fusewright.target import FORMATS, Format
from fusewright.target.precision import MXFP8, NVFP4

FP8_MAX, FP4_MAX = 448.0, 6.0
WEIGHT_REACHES = (6.0, 4.0)
"""What the largest of a stored block becomes: with 4 the steps below it are finer, and even.

Normally distributed weights gain 0.8 dB on 6 alone. ("Four Over Six", arXiv 2512.02010.)
"""
_FP8 = FORMATS[MXFP8].dtype
_E8M0_BIAS = 127


@dataclass(frozen=True)
class Blocks:
    """A matrix [K, N] in blocks along K.

    Attributes:
        codes: [K, N], FP4 or FP8.
        scales: [K / block, N]: FP8 of NVFP4; of MXFP8 the exponent of two plus 127, as uint8.
        scale: of NVFP4, what the scales are multiplied with.
    """

    codes: np.ndarray
    scales: np.ndarray
    scale: float = 1.0

    @property
    def values(self) -> np.ndarray:
        """[K, N], float32."""
        return dequantized(self.codes, self.scales, self.scale)


def global_scale(largest: float, dtype: np.dtype) -> np.ndarray:
    """NVFP4's scale of a whole tensor, in `dtype`: 2688 times it holds the largest magnitude.

    A power of two: exact in FP16 and BF16, and so are its products with FP8 block scales. Block
    scales have relative steps, so being up to twice as large costs them nothing.
    """
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)  # type: ignore[no-untyped-call]
    wanted = max(float(largest) / FORMATS[NVFP4].maximum, smallest)
    return np.asarray(2.0 ** np.ceil(np.log2(wanted)), dtype)


def to_blocks(values: np.ndarray, form: Format, reaches: Sequence[float] = (FP4_MAX,)) -> Blocks:
    """Rounds a matrix to nearest, each block by its largest magnitude.

    Args:
        values: [K, N], finite, of the type that they are restored to; K a multiple of the block.
        form: NVFP4 or MXFP8.
        reaches: of NVFP4, numbers that a block's largest may become; each block takes the one that
            leaves the least squared error.
    """
    assert form.block is not None
    blocks = np.asarray(values, np.float32).reshape(-1, form.block, values.shape[-1])
    peaks = np.abs(blocks).max(axis=1)
    if form.name == MXFP8:
        exponents = _exponents(peaks)
        scales = (exponents + _E8M0_BIAS).astype(np.uint8)
        codes = _codes(blocks, np.exp2(exponents).astype(np.float32), form)
        return Blocks(codes.reshape(values.shape), scales)
    scale = float(global_scale(float(peaks.max(initial=0.0)), values.dtype))
    first, *others = (_nvfp4(blocks, peaks / np.float32(reach), scale) for reach in reaches)
    codes, scales, errors = first
    for other in others:
        better = other[2] < errors
        codes = np.where(better[:, None], other[0], codes)
        scales, errors = (
            np.where(better, b, a) for a, b in ((scales, other[1]), (errors, other[2]))
        )
    return Blocks(codes.reshape(values.shape), scales, scale)


def _nvfp4(
    blocks: np.ndarray, wanted: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, FP8 scales near the wanted steps, and the squared error of each block.

    All in units of `scale`, a power of two: squares of the values themselves could overflow.
    """
    blocks, wanted = blocks / np.float32(scale), wanted / np.float32(scale)
    scales = np.minimum(wanted, np.float32(FP8_MAX)).astype(_FP8)
    steps = scales.astype(np.float32)
    codes = _codes(blocks, steps, FORMATS[NVFP4])
    errors = ((codes.astype(np.float32) * steps[:, None] - blocks) ** 2).sum(axis=1)
    return codes, scales, errors


def _codes(blocks: np.ndarray, steps: np.ndarray, form: Format) -> np.ndarray:
    """The nearest codes, of a block whose step is 0 all 0."""
    limit = np.float32(FP4_MAX if form.name == NVFP4 else FP8_MAX)
    steps = np.where(steps > 0, steps, np.float32(np.inf))[:, None]
    return np.asarray(np.clip(blocks / steps, -limit, limit).astype(form.dtype))


def dequantized(codes: np.ndarray, scales: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """What codes stand for, float32; codes and scales as in `Blocks`."""
    if scales.dtype == np.uint8:
        steps = np.exp2(scales.astype(np.float32) - np.float32(_E8M0_BIAS))
    else:
        steps = scales.astype(np.float32) * np.float32(scale)
    block = codes.shape[0] // scales.shape[0]
    result: np.ndarray = codes.astype(np.float32) * np.repeat(steps, block, axis=0)
    return result


def _exponents(peaks: np.ndarray) -> np.ndarray:
    """The smallest e with peak ≤ 448·2^e, within E8M0; of nothing but zeros the smallest there."""
    mantissas, exponents = np.frexp(peaks / np.float32(FP8_MAX))  # m·2^e with m in [0.5, 1)
    exact = exponents - (mantissas == 0.5)
    lowest, highest = -126, 127
    return np.asarray(np.clip(np.where(peaks > 0, exact, lowest), lowest, highest), np.int32)
