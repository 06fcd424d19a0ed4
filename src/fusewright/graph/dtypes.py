"""Element types as graphsurgeon has them: NumPy's, or ONNX's number of one that NumPy lacks."""

from __future__ import annotations

import numpy as np
import onnx


def onnx_type(dtype: object) -> int:
    """The number in `onnx.TensorProto`."""
    if isinstance(dtype, int):
        return dtype
    # NumPy's stubs list what makes a type, and leave ml_dtypes' out.
    number: int = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))  # type: ignore[call-overload]
    return number


def numpy_type(dtype: object) -> np.dtype:
    """The type of an array that holds it; of those that NumPy lacks, that of ml_dtypes."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(onnx_type(dtype)))
