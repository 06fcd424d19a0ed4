"""Which α a place gets: the one with the least error of its layers, "no smoothing" among them.

Maxima are the extremes of what was seen, and an α that makes all channels reach the same range
makes every one of them clip on data with larger ones: judged on the rows that the maxima come from,
the largest α always looks best, and on a classifier's input (one row per image) costs decibels. So
each half of the feeds is judged with the scales and the range of the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusewright.calibrate import CalibrationOptions, Histogram
from fusewright.calibrate.channels import Half
from fusewright.calibrate.methods import threshold
from fusewright.quantize.migrate import row_maxima, smoothing_scale
from fusewright.quantize.weights import INT8_MAX, scale_of, weight_scale

CANDIDATES = (0.3, 0.5, 0.7)
# Rows kept of each half of the calibration data, and columns of the weights that read them.
ROWS = 128
_COLUMNS = 128
_ALONE = 16
# A gain of less is within what another sample of rows would say.
_WORTH_IT = 0.9


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

    @property
    def gain_db(self) -> float:
        """How much lower the error is than without smoothing, in dB."""
        if self.error == 0.0:
            return 0.0 if self.error_off == 0.0 else math.inf
        return 10.0 * math.log10(self.error_off / self.error)


def choose_alpha(
    halves: Sequence[Half],
    weights: Sequence[np.ndarray],
    options: CalibrationOptions,
    candidates: Sequence[float] = CANDIDATES,
) -> Choice | None:
    """Tries every candidate on a sample of rows; among equals, no smoothing.

    Args:
        halves: of what was seen of X.
        weights: the matrices [channels, out] that read X.
        options: the method that will choose the range of X/s.
        candidates: values of α.

    Returns:
        None where there are no two halves to judge one by the other.
    """
    if len(halves) < 2:
        return None
    matrix = np.concatenate([_columns(weight) for weight in weights], axis=1)
    pairs = [(half, Judge.of(other, matrix)) for half, other in (halves, halves[::-1])]

    of_weights = row_maxima(weights)

    def error(alpha: float | None) -> float:
        scales = [_scale(half, of_weights, alpha) for half, _ in pairs]
        return sum(j.error(h, s, options) for (h, j), s in zip(pairs, scales, strict=True))

    off = error(None)
    chosen, best = None, _WORTH_IT * off
    for candidate in candidates:
        found = error(candidate)
        if found < best:
            chosen, best = candidate, found
    best = off if chosen is None else best
    norm = sum(judge.norm for _, judge in pairs) or 1.0
    return Choice(chosen, best / norm, off / norm)


@dataclass(frozen=True)
class Judge:
    """Rows [rows, channels] and a matrix [channels, columns], with their product."""

    rows: np.ndarray
    matrix: np.ndarray
    exact: np.ndarray

    @classmethod
    def of(cls, half: Half, matrix: np.ndarray) -> Judge:
        """The sample of one half."""
        return cls(half.rows, matrix, _product(half.rows, matrix))

    @property
    def norm(self) -> float:
        """‖exact‖²."""
        return float(np.vdot(self.exact, self.exact))

    def error(self, seen: Half, scale: np.ndarray, options: CalibrationOptions) -> float:
        """‖exact − Q(rows/s)·Q(diag(s)·matrix)‖².

        Activations are rounded per tensor, with the range that the method finds for what `seen`
        saw of X/s; weights per channel.
        """
        weights = self.matrix * scale[:, None]
        activations = _rounded(self.rows / scale, _step(seen, scale, options))
        rounded = _rounded(weights, weight_scale(weights, 1))
        difference = self.exact - _product(activations, rounded)
        return float(np.vdot(difference, difference))


def _scale(half: Half, of_weights: np.ndarray, alpha: float | None) -> np.ndarray:
    if alpha is None:
        return np.ones(half.maxima.size, np.float32)
    return smoothing_scale(half.maxima, of_weights, alpha)


def _step(half: Half, scale: np.ndarray, options: CalibrationOptions) -> np.ndarray:
    if options.method == "minmax":  # of all rows, not of the sample alone
        return scale_of(np.max(half.maxima / scale))
    observer = Histogram()
    observer.update(half.rows / scale)
    return scale_of(threshold(observer, options.method, options.percentile))


def _product(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """rows @ matrix, in parts for which OpenBLAS starts no threads.

    Hundreds of products of a millisecond each: waiting for threads took four times as long as all
    the rest of the search (Swin-T, two busy cores: 7.2 s, 1.2 s so).
    """
    parts = range(0, len(matrix), _ALONE)
    return np.asarray(sum(rows[:, i : i + _ALONE] @ matrix[i : i + _ALONE] for i in parts))


def _columns(weight: np.ndarray) -> np.ndarray:
    """Evenly spaced columns: the error of some hundred tells that of thousands."""
    width = weight.shape[1]
    if width <= _COLUMNS:
        return weight
    return weight[:, np.linspace(0, width - 1, _COLUMNS).round().astype(int)]


def _rounded(values: np.ndarray, step: np.ndarray) -> np.ndarray:
    steps = np.clip(np.rint(values / step), -INT8_MAX - 1, INT8_MAX)
    return np.asarray(steps * step, np.float32)
