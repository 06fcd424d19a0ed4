"""Observers: what is remembered of a tensor while samples pass.

Both keep integers and an exact maximum only, so that the result is bit-identical in whatever
order, batches or parts the values arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusewright.errors import DataError

# A bin is a float32 without its low 16 bits: sign, exponent, top 7 mantissa bits, 128 bins to an
# octave, none wider than one int8 step at the top. Against brute force on 16 distributions the
# squared error of `mse` is within 0.1 % on all dense ones; 15 counts as fast and chooses no better
# for twice the bins.
_SHIFT = 16
_SIGN = 1 << (31 - _SHIFT)
# Zeros (half of a ReLU's output) would all add to one counter, each waiting for the one before.
# Spread over the first eight bins, which hold nothing but subnormals below 2**-130, they do not:
# 1.12 ns an element instead of 1.48. `bins()` puts the eight together again.
_LANES = 8
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Bins:
    """The non-zero magnitudes of a tensor, in bins of constant relative width.

    Attributes:
        edges: float64 [n + 1], ascending and positive; the last one is the exact maximum, so the
            last bin may have no width.
        counts: int64 [n].
        zeros: how many values were zero (or below 2**-130).
    """

    edges: np.ndarray
    counts: np.ndarray
    zeros: int

    @property
    def total(self) -> int:
        """Number of values, zeros included."""
        return self.zeros + int(self.counts.sum())


class Scratch:
    """Work arrays that the histograms of one calibration share, so none is allocated per sample."""

    def __init__(self) -> None:
        """Allocates for parts of 65,536 values."""
        self.lanes = np.tile(np.arange(_LANES, dtype=np.uint32), _CHUNK // _LANES)
        self.bits = np.empty(_CHUNK, np.uint32)
        self.index = np.empty(_CHUNK, np.intp)


class MaxObserver:
    """Remembers the largest magnitude: all that `minmax` needs."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self.maximum = 0.0
        self.count = 0

    def update(self, array: np.ndarray, name: str = "tensor") -> None:
        """Adds the values of a float array of any shape.

        Raises:
            DataError: it holds NaN or Inf, or is not floating point; the message gives `name`.
        """
        self._see(_flat_float32(array, name), name)

    def _see(self, flat: np.ndarray, name: str) -> None:
        if not flat.size:
            return
        # np.max and np.min hand NaN on, so this also finds it; no copy of |x| is made.
        peak = max(float(flat.max()), -float(flat.min()))
        if not np.isfinite(peak):
            raise DataError(f"tensor {name!r} holds NaN or Inf while the model runs on this sample")
        self.maximum = max(self.maximum, peak)
        self.count += flat.size

    def merge(self, other: MaxObserver) -> None:
        """Adds what another observer of the same kind has seen."""
        if type(other) is not type(self):
            raise TypeError(f"cannot merge {type(other).__name__} into {type(self).__name__}")
        self.maximum = max(self.maximum, other.maximum)
        self.count += other.count

    def state(self) -> dict[str, Any]:
        """Everything seen, as JSON-able data; `from_state` is its inverse."""
        return {"kind": "max", "maximum": self.maximum, "count": self.count}


class Histogram(MaxObserver):
    """Counts magnitudes by float32 bit pattern: exact counts, no range to know beforehand."""

    def __init__(self, scratch: Scratch | None = None) -> None:
        """Has seen nothing yet; `scratch` may be shared by histograms used in turn."""
        super().__init__()
        self._scratch = scratch or Scratch()
        # Pages of np.zeros that nobody touches take no memory: only the occupied window does.
        self._counts = np.zeros(2 * _SIGN, np.int64)

    def _see(self, flat: np.ndarray, name: str) -> None:
        super()._see(flat, name)
        bits = flat.view(np.uint32)
        work = self._scratch
        for start in range(0, bits.size, _CHUNK):
            part = bits[start : start + _CHUNK]
            top, index = work.bits[: part.size], work.index[: part.size]
            np.right_shift(part, _SHIFT, out=top)
            np.maximum(top, work.lanes[: part.size], out=index)
            np.add.at(self._counts, index, 1)

    def merge(self, other: MaxObserver) -> None:
        """Adds what another histogram has seen."""
        super().merge(other)
        if isinstance(other, Histogram):
            self._counts += other._counts

    def _magnitudes(self) -> np.ndarray:
        """Counts by magnitude: both signs together, the lanes of zero back in bin 0."""
        counts = self._counts[:_SIGN] + self._counts[_SIGN:]
        counts[0] = counts[:_LANES].sum()
        counts[1:_LANES] = 0
        return counts

    def bins(self) -> Bins:
        """The occupied window of the histogram, both signs together."""
        counts = self._magnitudes()
        zeros, counts[0] = int(counts[0]), 0
        used = np.flatnonzero(counts)
        if not used.size:
            return Bins(np.zeros(1), np.zeros(0, np.int64), zeros)
        first, last = int(used[0]), int(used[-1])
        patterns = np.arange(first, last + 2, dtype=np.uint32) << np.uint32(_SHIFT)
        edges = patterns.view(np.float32).astype(np.float64)
        edges[-1] = self.maximum
        return Bins(edges, counts[first : last + 1], zeros)

    def state(self) -> dict[str, Any]:
        """Everything seen, as JSON-able data: the occupied window only."""
        counts = self._magnitudes()
        used = np.flatnonzero(counts)
        first, end = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        return super().state() | {
            "kind": "histogram",
            "shift": _SHIFT,
            "first": first,
            "counts": counts[first:end].tolist(),
        }


Observer = MaxObserver


def from_state(state: Mapping[str, Any]) -> Observer:
    """Rebuilds an observer from `state()`.

    Raises:
        DataError: the state is not one, or was written with another bin width.
    """
    try:
        observer = _restore(state)
        observer.maximum, observer.count = float(state["maximum"]), int(state["count"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"not the state of a calibration observer: {error!r}") from error
    return observer


def _restore(state: Mapping[str, Any]) -> Observer:
    if state["kind"] == "max":
        return MaxObserver()
    if state["kind"] != "histogram" or state["shift"] != _SHIFT:
        raise ValueError(f"kind {state['kind']!r}, shift {state.get('shift')}")
    observer = Histogram()
    counts, first = np.array(state["counts"], np.int64), int(state["first"])
    if first < 0 or first + counts.size > _SIGN:
        raise ValueError(f"bins {first} to {first + counts.size}")
    observer._counts[first : first + counts.size] = counts
    return observer


def merge_states(states: Iterable[Mapping[str, Any]]) -> Observer:
    """The observer that would have seen all parts: the same bits whatever the order of `states`."""
    parts = [from_state(state) for state in states]
    if not parts:
        raise DataError("no observer states to merge")
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    return whole


def _flat_float32(array: np.ndarray, name: str) -> np.ndarray:
    """The values as contiguous float32 [n]; float16 widens exactly, float64 rounds."""
    if array.dtype.kind != "f":
        raise DataError(f"tensor {name!r} is {array.dtype}, only floating point can be calibrated")
    with np.errstate(over="ignore"):  # becomes Inf, which is reported
        return np.ascontiguousarray(array, np.float32).reshape(-1)
