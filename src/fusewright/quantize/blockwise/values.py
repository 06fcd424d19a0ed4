"""Stored matrices in NVFP4 and MXFP8, and what they stand for.

NVFP4 is a 4-bit float (E2M1) times an FP8 scale of 16 values, times one scale of the tensor; MXFP8
is FP8 (E4M3) times a power of two (E8M0) of 32 values. (OCP Microscaling Formats 1.0; TensorRT,
"Quantization Schemes".)
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from fusewright.target import FORMATS, Format
from fusewright.target.precision import MXFP8, NVFP4

FP8_MAX, FP4_MAX = 448.0, 6.0
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


def to_blocks(values: np.ndarray, form: Format) -> Blocks:
    """Rounds a matrix to nearest, each block by its largest magnitude.

    Args:
        values: [K, N], finite, of the type that they are restored to; K a multiple of the block.
        form: NVFP4 or MXFP8.
    """
    dtype = values.dtype
    assert form.block is not None
    blocks = np.asarray(values, np.float32).reshape(-1, form.block, values.shape[-1])
    peaks = np.abs(blocks).max(axis=1)
    if form.name == NVFP4:
        scale = float(global_scale(float(peaks.max(initial=0.0)), dtype))
        scales = (peaks / np.float32(FP4_MAX) / np.float32(scale)).astype(_FP8)
        steps = scales.astype(np.float32) * np.float32(scale)
    else:
        scale = 1.0
        exponents = _exponents(peaks)
        scales = (exponents + _E8M0_BIAS).astype(np.uint8)
        steps = np.exp2(exponents).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = np.where(steps[:, None] > 0, blocks / steps[:, None], np.float32(0.0))
    limit = FP4_MAX if form.name == NVFP4 else FP8_MAX
    codes = np.clip(quotients, -limit, limit).astype(form.dtype)
    return Blocks(codes.reshape(values.shape), scales, scale)


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
