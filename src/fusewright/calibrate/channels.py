"""Maxima per channel, and a sample of rows: what smoothing has to know of a tensor.

Like the histograms, both are the same bits in whatever order, batches or parts the values arrive.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fusewright.calibrate.runner import CalibrationOptions, watch
from fusewright.errors import DataError
from fusewright.graph.session import Feed

_SEED = 20221118
_NONE = np.zeros(0, np.uint64)


class ChannelObserver:
    """Remembers max|x| of each channel (the last axis), and up to `rows` different rows.

    The rows kept are those with the smallest hash: a sample that does not depend on the order.
    """

    def __init__(self, rows: int = 0) -> None:
        """Has seen nothing yet."""
        self.limit = rows
        self.count = 0
        self._maxima: np.ndarray | None = None
        self._hashes, self._rows = _NONE, np.zeros((0, 0), np.float32)

    @property
    def maxima(self) -> np.ndarray:
        """max|x|, float32 [channels].

        Raises:
            DataError: no value was seen.
        """
        if self._maxima is None:
            raise DataError("a tensor was empty on every sample")
        return self._maxima

    @property
    def rows(self) -> np.ndarray:
        """The sample, float32 [at most `limit`, channels], in an order of its own."""
        return self._rows

    def update(self, array: np.ndarray, name: str = "tensor") -> None:
        """Adds the values of a float array [..., channels].

        Raises:
            DataError: NaN or Inf, not floating point, or another number of channels than before.
        """
        if array.dtype.kind != "f" or not array.ndim:
            raise DataError(f"tensor {name!r} is {array.dtype} of rank {array.ndim}")
        if not array.size:
            return
        flat = np.ascontiguousarray(array, np.float32).reshape(-1, array.shape[-1])
        peaks = np.maximum(flat.max(axis=0), -flat.min(axis=0))
        if not np.isfinite(peaks).all():
            raise DataError(f"tensor {name!r} holds NaN or Inf while the model runs on this sample")
        self._add(peaks, len(flat), name)
        if self.limit:
            self._sample(_hashes(flat), flat)

    def merge(self, other: ChannelObserver) -> None:
        """Adds what another observer of the same tensor has seen.

        Raises:
            DataError: it has other channels or keeps another number of rows.
        """
        if other.limit != self.limit:
            raise DataError(f"parts keep {self.limit} and {other.limit} rows")
        if other._maxima is not None:
            self._add(other._maxima, other.count, "tensor")
            self._sample(other._hashes, other._rows)

    def _add(self, peaks: np.ndarray, count: int, name: str) -> None:
        if self._maxima is None:
            self._maxima, self._rows = np.zeros_like(peaks), np.zeros((0, peaks.size), np.float32)
        if self._maxima.size != peaks.size:
            raise DataError(f"tensor {name!r} has {peaks.size} channels, not {self._maxima.size}")
        self._maxima = np.maximum(self._maxima, peaks)
        self.count += count

    def _sample(self, hashes: np.ndarray, rows: np.ndarray) -> None:
        if len(self._hashes) == self.limit and self.limit:
            wanted = hashes < self._hashes[-1]
            hashes, rows = hashes[wanted], rows[wanted]
        both = np.concatenate([self._hashes, hashes])
        kept, first = np.unique(both, return_index=True)
        first = first[: self.limit]
        self._hashes = kept[: self.limit]
        self._rows = np.concatenate([self._rows, rows])[first]

    def state(self) -> dict[str, Any]:
        """Everything seen, as JSON-able data; `from_state` is its inverse."""
        return {
            "limit": self.limit,
            "count": self.count,
            "maxima": None if self._maxima is None else _packed(self._maxima),
            "rows": _packed(self._rows),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ChannelObserver:
        """Rebuilds an observer from `state()`.

        Raises:
            DataError: it is not one.
        """
        try:
            observer = cls(int(state["limit"]))
            if state["maxima"] is not None:
                peaks = _unpacked(state["maxima"])
                rows = _unpacked(state["rows"]).reshape(-1, peaks.size)
                observer._add(peaks, int(state["count"]), "tensor")
                observer._sample(_hashes(rows), rows)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not the state of a channel observer: {error!r}") from error
        return observer


def observe_channels(
    model: Path | bytes | onnx.ModelProto,
    tensors: Mapping[str, int],
    samples: Iterable[Feed],
    options: CalibrationOptions = CalibrationOptions(),  # noqa: B008 - frozen
    progress: Callable[[int], None] | None = None,
) -> ChannelObservations:
    """One pass over the samples that looks at the channels of some tensors.

    Args:
        model: the flat float model.
        tensors: name → how many rows are kept of it, 0 for none.
        samples: feeds; one is in memory at a time.
        options: limits; the method plays no part.
        progress: called after each feed with the number of samples seen so far.

    Raises:
        ModelError: a tensor is not in the main graph, or the model does not load.
        DataError: there are no samples, the model fails on one, or a tensor holds NaN or Inf.
    """
    observers = {name: ChannelObserver(rows) for name, rows in tensors.items()}
    watching = {name: [observer] for name, observer in observers.items()}
    seen = watch(model, watching, samples, options, progress)
    return ChannelObservations(observers, seen)


@dataclass
class ChannelObservations:
    """What the observers of all tensors have seen; parts of several processes merge."""

    observers: dict[str, ChannelObserver]
    samples: int

    def merge(self, other: ChannelObservations) -> None:
        """Adds another part's.

        Raises:
            DataError: the parts are of different tensors.
        """
        if list(self.observers) != list(other.observers):
            raise DataError("parts of a calibration observe different tensors")
        for name, observer in self.observers.items():
            observer.merge(other.observers[name])
        self.samples += other.samples


def _hashes(rows: np.ndarray) -> np.ndarray:
    """A number for each row [n, channels], uint64 [n]: equal for equal rows, else all but never."""
    factors = np.random.default_rng(_SEED).integers(0, 2**63, rows.shape[1], np.uint64) | 1
    mixed: np.ndarray = np.einsum("ij,j->i", rows.view(np.uint32), factors)
    # Bits of the sum that are weak in some data must not decide the order alone.
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return mixed


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode("ascii")


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
