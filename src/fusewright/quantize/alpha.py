"""Which α a place gets: the one with the least error of its layers, "no smoothing" among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusewright.calibrate import CalibrationOptions, Histogram
from fusewright.calibrate.methods import threshold
from fusewright.quantize.migrate import smoothing_scale
from fusewright.quantize.weights import INT8_MAX, scale_of, weight_scale

CANDIDATES = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
# Rows of calibration data that a search looks at, and columns of the weights that read them.
ROWS = 256
_COLUMNS = 512


@dataclass(frozen=True)
class Choice:
    """What the search found.

    Attributes:
        alpha: None where no smoothing is best.
        error: of the layers' output, ‖X·W − Q(X/s)·Q(diag(s)·W)‖² / ‖X·W‖².
        error_off: the same without smoothing; never less than `error`.
    """

    alpha: float | None
    error: float
    error_off: float


def choose_alpha(
    maxima: np.ndarray,
    rows: np.ndarray,
    weights: Sequence[np.ndarray],
    options: CalibrationOptions,
    candidates: Sequence[float] = CANDIDATES,
) -> Choice:
    """Tries every candidate on a sample of rows; among equals, no smoothing.

    Args:
        maxima: max|X_j| over all of calibration, [channels].
        rows: a sample of X, [rows, channels].
        weights: the matrices [channels, out] that read X.
        options: the method that will choose the range of X/s.
        candidates: values of α.
    """
    matrix = np.concatenate([_columns(weight) for weight in weights], axis=1)
    exact = rows @ matrix

    def error(scale: np.ndarray) -> float:
        return layer_error(rows, matrix, exact, scale, options)

    off = best = error(np.ones(len(maxima), np.float32))
    alpha: float | None = None
    for candidate in candidates:
        found = error(smoothing_scale(maxima, weights, candidate))
        if found < best:
            alpha, best = candidate, found
    norm = float(np.vdot(exact, exact)) or 1.0
    return Choice(alpha, best / norm, off / norm)


def layer_error(
    rows: np.ndarray,
    matrix: np.ndarray,
    exact: np.ndarray,
    scale: np.ndarray,
    options: CalibrationOptions,
) -> float:
    """‖exact − Q(rows/s)·Q(diag(s)·matrix)‖², activations per tensor and weights per channel."""
    smooth = rows / scale
    observer = Histogram()
    observer.update(smooth)
    step = scale_of(threshold(observer, options.method, options.percentile))
    scaled = matrix * scale[:, None]
    difference = exact - _rounded(smooth, step) @ _rounded(scaled, weight_scale(scaled, 1))
    return float(np.vdot(difference, difference))


def _columns(weight: np.ndarray) -> np.ndarray:
    """Evenly spaced columns: the error of some hundred tells that of thousands."""
    width = weight.shape[1]
    if width <= _COLUMNS:
        return weight
    return weight[:, np.linspace(0, width - 1, _COLUMNS).round().astype(int)]


def _rounded(values: np.ndarray, step: np.ndarray) -> np.ndarray:
    steps = np.clip(np.rint(values / step), -INT8_MAX - 1, INT8_MAX)
    return np.asarray(steps * step, np.float32)
