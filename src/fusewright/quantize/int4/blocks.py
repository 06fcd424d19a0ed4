"""Rounding a matrix [K, N] to INT4 with one scale per block of its input channels, symmetric.

A column's K values are cut into blocks; each block has a positive scale, w ≈ scale · code with
codes from −8 to 7. What TensorRT-RTX 1.7 does with such a weight of a MatMul, by its plan:
in blocks of 16 to 256 channels the GEMM itself reads the four bits (`Int4` among its constants).
With one block for all of K, or an odd N, a kernel of its own first writes the whole weight in full
precision. It takes a shorter last block too, but ModelOpt's export refuses one (Model-Optimizer
2320) and what TensorRT does with it is not documented: such a weight gets smaller blocks, or stays
float.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusewright.errors import UsageError

INT4_MIN, INT4_MAX = -8, 7
BLOCKS = (128, 64, 32)
"""Sizes that can be asked for, largest first."""

# Half way between -8 and 7: no value of a block is further than half a step from its code, and the
# step is a fifteenth smaller than with 7.
_REACH = np.float32(7.5)
# Of a block that is zero throughout; any positive number is exact.
_OF_ZEROS = np.float32(1.0)
# Below this a float32 scale is subnormal, and engines may flush it to 0.
_SMALLEST = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class BlockWeight:
    """A rounded weight.

    Attributes:
        codes: int8 [K, N], from −8 to 7.
        scales: float32 [K / block, N], positive.
    """

    codes: np.ndarray
    scales: np.ndarray

    @property
    def block(self) -> int:
        """Input channels that share a scale."""
        return int(self.codes.shape[0] // self.scales.shape[0])

    @property
    def values(self) -> np.ndarray:
        """What DequantizeLinear makes of it: float32 [K, N]."""
        return np.asarray(self.codes * np.repeat(self.scales, self.block, axis=0))


def check_block(block: int) -> None:
    """Refuses a block size that engines have no kernels for.

    Raises:
        UsageError: it is not one of `BLOCKS`.
    """
    if block not in BLOCKS:
        sizes = ", ".join(map(str, sorted(BLOCKS)))
        raise UsageError(f"INT4 block of {block} channels: choose {sizes}")


def choose_block(inputs: int, outputs: int, wanted: int) -> int | str:
    """The largest block of at most `wanted` channels that an engine reads inside the GEMM.

    Args:
        inputs: K, of the matrix.
        outputs: N.
        wanted: one of `BLOCKS`.

    Returns:
        The reason where there is none: the weight stays float.
    """
    if outputs % 2:
        return f"an odd number of outputs ({outputs}): two INT4 values share a byte"
    for block in BLOCKS:
        if block <= wanted and inputs % block == 0 and inputs // block > 1:
            return block
    if inputs % BLOCKS[-1]:
        return f"{inputs} input channels, which is no multiple of {BLOCKS[-1]}"
    return f"{inputs} input channels: INT4 needs two blocks of {BLOCKS[-1]} at least"


def block_scales(weight: np.ndarray, block: int, shrink: np.ndarray | float = 1.0) -> np.ndarray:
    """Scales for a matrix [K, N] by the largest magnitude per block: float32 [K / block, N].

    Args:
        weight: float32 [K, N].
        block: divides K.
        shrink: factor on the magnitude, a number or [K / block, N]; below 1 it clips.
    """
    return scales_of(largest(weight, block), shrink)


def largest(weight: np.ndarray, block: int) -> np.ndarray:
    """max|w| of each block: [K / block, N]."""
    cut = weight.reshape(-1, block, weight.shape[1])
    return np.asarray(np.maximum(cut.max(axis=1), -cut.min(axis=1)), np.float32)


def scales_of(magnitude: np.ndarray, shrink: np.ndarray | float = 1.0) -> np.ndarray:
    """Scales for the largest magnitude of each block, which `shrink` multiplies; positive."""
    scale = (magnitude * shrink / _REACH).astype(np.float32)
    scale = np.where(magnitude > 0, np.maximum(scale, _SMALLEST), _OF_ZEROS)
    return np.asarray(scale, np.float32)


def codes_of(weight: np.ndarray, scales: np.ndarray, block: int) -> np.ndarray:
    """Codes of a matrix [K, N] for given scales [K / block, N], to nearest: int8 [K, N]."""
    cut = weight.reshape(-1, block, weight.shape[1])
    steps = np.rint(cut / scales[:, None])
    return np.asarray(np.clip(steps, INT4_MIN, INT4_MAX), np.int8).reshape(weight.shape)


def round_to_nearest(weight: np.ndarray, block: int) -> BlockWeight:
    """RTN: scales by the largest magnitude, every value to its nearest code."""
    scales = block_scales(weight, block)
    return BlockWeight(codes_of(weight, scales, block), scales)
