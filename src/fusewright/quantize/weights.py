"""Scales of weights: symmetric, by the largest magnitude per channel or per tensor.

Clipping a weight's range by MSE gains nothing over absmax per channel (seen on resnet20,
squeezenet10 and RLFN), so there is one method.
"""

from __future__ import annotations

import numpy as np

from fusewright.target import FORMATS, Format
from fusewright.target.precision import INT8

INT8_MAX = 127
_INT8 = FORMATS[INT8]
# A channel of zeros (pruned, or killed by its BN) needs a positive scale. Any one is exact, but
# onnxruntime's optimizer rounds the bias to steps of it: that of values up to 1.
_OF_ZEROS = np.float32(1.0)
# Below this a float32 scale is subnormal, and engines may flush it to 0.
_SMALLEST = np.finfo(np.float32).tiny


def weight_scale(values: np.ndarray, axis: int | None, form: Format = _INT8) -> np.ndarray:
    """Scale of a weight in a format: float32, a scalar or a vector over `axis`."""
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    return scale_of(np.abs(values).max(axis=others), form)


def scale_of(threshold: np.ndarray | float, form: Format = _INT8) -> np.ndarray:
    """Symmetric scale for a clipping threshold: threshold / maximum, always positive."""
    magnitude = np.asarray(threshold, dtype=np.float32)
    scale = (magnitude / np.float32(form.maximum)).astype(np.float32)
    zeros = _OF_ZEROS / np.float32(form.maximum)
    scale = np.where(magnitude > 0, np.maximum(scale, _SMALLEST), zeros)
    return np.asarray(scale, dtype=np.float32)
