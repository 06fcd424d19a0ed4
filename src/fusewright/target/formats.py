"""Number formats that groups are quantized to, as ONNX or TensorRT's own operators write them."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from fusewright.target.precision import FP8, INT4, INT8, MXFP8, NVFP4


@dataclass(frozen=True)
class Format:
    """One number format; all are symmetric, with a zero-point of 0.

    Attributes:
        name: as users write it.
        title: as messages write it.
        maximum: largest magnitude of its grid: the scale is threshold / maximum.
        dtype: type of the zero-point and of the quantized values.
        min_opset: of QuantizeLinear and DequantizeLinear with this type, FP32 scales.
        weights_only: activations stay float.
        grows: its steps grow with the values; INT8's are all of one size.
        block: elements along the inputs of a Linear that share a scale, which for activations is
            found at run time; None where scales are stored alone.
    """

    name: str
    title: str
    maximum: float
    dtype: np.dtype
    min_opset: int
    weights_only: bool = False
    grows: bool = False
    block: int | None = None

    @property
    def has_stored_scales(self) -> bool:
        """Whether calibration decides a scale of an activation: all but MXFP8's are powers of 2."""
        return self.name != MXFP8


# Per-channel scales exist from opset 13 on, float8 from 19, int4 and blocks from 21.
FORMATS = {
    INT8: Format(INT8, "INT8", 127.0, np.dtype(np.int8), 13),
    FP8: Format(FP8, "FP8", 448.0, np.dtype(ml_dtypes.float8_e4m3fn), 19, grows=True),
    INT4: Format(INT4, "INT4", 7.0, np.dtype(ml_dtypes.int4), 21, weights_only=True),
    # 6 is the largest FP4 number, 448 the largest of the FP8 scales, which one more scale scales.
    NVFP4: Format(
        NVFP4, "NVFP4", 6.0 * 448.0, np.dtype(ml_dtypes.float4_e2m1fn), 23, grows=True, block=16
    ),
    MXFP8: Format(
        MXFP8, "MXFP8", 448.0, np.dtype(ml_dtypes.float8_e4m3fn), 19, grows=True, block=32
    ),
}
HALF_SCALES_OPSET = 19
"""From here on a scale can be FP16 or BF16, which a quantized tensor of that type needs."""
BF16_OPSET = 22
"""From here on Conv, pooling and their like take BF16; MatMul, Add and most others did before."""


# TensorRT's own operators, which ONNX has no counterpart of. Its parser goes by the name alone.
TRT_DOMAIN = "trt"
NVFP4_QUANTIZE = "TRT_FP4DynamicQuantize"
MXFP8_QUANTIZE, MXFP8_DEQUANTIZE = "TRT_MXFP8DynamicQuantize", "TRT_MXFP8DequantizeLinear"


def format_of(dtype: object) -> Format | None:
    """The format whose quantized values have this type; None where there is none.

    FP8 values are FP8's: those of MXFP8 are told by the operators around them.

    Args:
        dtype: a NumPy type, or the number ONNX has for it where graphsurgeon kept that.
    """
    return _BY_ONNX.get(dtype) if type(dtype) is int else _BY_NUMPY.get(np.dtype(dtype))  # type: ignore[call-overload]


# onnx.TensorProto's numbers; onnx itself is slow to load.
_BY_ONNX: dict[object, Format] = {
    3: FORMATS[INT8],
    17: FORMATS[FP8],
    22: FORMATS[INT4],
    23: FORMATS[NVFP4],
}
_BY_NUMPY = {known.dtype: known for known in _BY_ONNX.values()}
