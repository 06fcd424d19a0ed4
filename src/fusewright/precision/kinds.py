"""The two half-size float types, and what each can hold."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx

from fusewright.target.precision import BF16, FP16


@dataclass(frozen=True)
class HalfKind:
    """One type of 16 bits.

    Attributes:
        name: as users write it.
        title: as messages write it.
        dtype: of stored values.
        onnx_type: its number in `onnx.TensorProto`.
        maximum: largest finite magnitude.
        normal: smallest magnitude with all bits of the mantissa.
        subnormal: smallest magnitude that is not 0.
        integers: up to here every integer is exact.
    """

    name: str
    title: str
    dtype: np.dtype
    onnx_type: int
    maximum: float
    normal: float
    subnormal: float
    integers: int

    @property
    def unit(self) -> float:
        """Largest relative error of rounding."""
        return 1.0 / self.integers

    def round(self, array: np.ndarray) -> np.ndarray:
        """The nearest values of this type; what is too large becomes infinite."""
        with np.errstate(over="ignore"):
            return np.asarray(array).astype(self.dtype)


KINDS = {
    FP16: HalfKind(
        FP16, "FP16", np.dtype(np.float16), onnx.TensorProto.FLOAT16,
        65504.0, 2.0**-14, 2.0**-24, 2048,
    ),
    BF16: HalfKind(
        BF16, "BF16", np.dtype(ml_dtypes.bfloat16), onnx.TensorProto.BFLOAT16,
        (2.0 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133, 256,
    ),
}  # fmt: skip
"""By name."""
HALF_TYPES = frozenset(kind.onnx_type for kind in KINDS.values())
