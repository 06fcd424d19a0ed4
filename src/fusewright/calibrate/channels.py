"""Maxima per channel, and a sample of rows: what smoothing has to know of a tensor.

Like the histograms, both are the same bits in whatever order the feeds arrive, in one part or many.
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


class Half:
    """What part of the feeds shows: max|x| of each channel, and some different rows.

    The rows kept are those with the smallest hash: a sample that does not depend on the order.
    """

    def __init__(self, channels: int, limit: int) -> None:
        """Has seen nothing yet."""
        self.limit, self.count = limit, 0
        self.maxima = np.zeros(channels, np.float32)
        self.rows = np.zeros((0, channels), np.float32)
        self._hashes = np.zeros(0, np.uint64)

    def add(self, peaks: np.ndarray, count: int, hashes: np.ndarray, rows: np.ndarray) -> None:
        """Adds `count` rows of which the maxima and (some of) the rows are given."""
        self.maxima = np.maximum(self.maxima, peaks)
        self.count += count
        if len(self._hashes) == self.limit > 0:
            wanted = hashes < self._hashes[-1]
            hashes, rows = hashes[wanted], rows[wanted]
        kept, first = np.unique(np.concatenate([self._hashes, hashes]), return_index=True)
        self._hashes = kept[: self.limit]
        self.rows = np.concatenate([self.rows, rows])[first[: self.limit]]

    def merge(self, other: Half) -> None:
        """Adds what another part has seen."""
        self.add(other.maxima, other.count, other._hashes, other.rows)

    def state(self) -> dict[str, Any]:
        """Everything seen, as JSON-able data; `from_state` is its inverse."""
        return {"count": self.count, "maxima": _packed(self.maxima), "rows": _packed(self.rows)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], limit: int) -> Half:
        """Rebuilds what `state()` gave."""
        peaks, rows = _unpacked(state["maxima"]), _unpacked(state["rows"])
        half, rows = cls(peaks.size, limit), rows.reshape(-1, peaks.size)
        half.add(peaks, int(state["count"]), _hashes(rows), rows)
        return half


class ChannelObserver:
    """Remembers max|x| of each channel (the last axis); with `rows`, also a sample of rows.

    The sample is kept in two halves that share no feed, so that what one half suggests can be
    judged by the other: neighbouring rows of one image are too alike for that. The hash of a feed
    says which of four parts it goes to; the halves are made of these, as equal as can be. The feed
    with the smallest hash lies apart, and makes a half where all the others went to its part.
    """

    def __init__(self, rows: int = 0) -> None:
        """Has seen nothing yet; `rows` are kept of each half."""
        self.limit = rows
        self._channels: int | None = None
        self._parts: dict[int, Half] = {}
        self._least: tuple[int, Half] | None = None

    @property
    def halves(self) -> list[Half]:
        """The halves that saw a feed: two, unless there was but one feed."""
        if not self._all:
            return []
        parts = {place: [part] for place, part in self._parts.items()}
        if self._least is not None:
            number, part = self._least
            is_elsewhere = any(place != _place(number) for place in parts)
            parts.setdefault(_place(number) if is_elsewhere else -1, []).append(part)
        counts = {place: sum(part.count for part in same) for place, same in parts.items()}
        halves = [Half(self.maxima.size, self.limit) for _ in range(2)]
        for place in sorted(parts, key=lambda place: (-counts[place], place)):
            half = min(halves, key=lambda half: half.count)
            for part in parts[place]:
                half.merge(part)
        return [half for half in halves if half.count]

    @property
    def _all(self) -> list[Half]:
        apart = () if self._least is None else (self._least[1],)
        return [*self._parts.values(), *apart]

    @property
    def count(self) -> int:
        """Rows seen."""
        return sum(part.count for part in self._all)

    @property
    def maxima(self) -> np.ndarray:
        """max|x| of each channel, float32 [channels]; zeros where the tensor was always empty.

        Raises:
            DataError: it was never seen.
        """
        if not self._all:
            if self._channels is None:
                raise DataError("the tensor was never seen")
            return np.zeros(self._channels, np.float32)
        return np.asarray(np.max([part.maxima for part in self._all], axis=0))

    def update(self, array: np.ndarray, name: str = "tensor") -> None:
        """Adds the values of one feed, a float array [..., channels].

        Raises:
            DataError: NaN or Inf, not floating point, or another number of channels than before.
        """
        if array.dtype.kind != "f" or not array.ndim:
            raise DataError(f"tensor {name!r} is {array.dtype} of rank {array.ndim}")
        self._channels = array.shape[-1]
        if not array.size:
            return
        rows = np.ascontiguousarray(array, np.float32).reshape(-1, array.shape[-1])
        peaks = np.abs(np.maximum(rows.max(axis=0), -rows.min(axis=0)))  # no -0
        if not np.isfinite(peaks).all():
            raise DataError(f"tensor {name!r} holds NaN or Inf while the model runs on this sample")
        hashes = _hashes(rows) if self.limit else np.zeros(0, np.uint64)
        sampled = rows if self.limit else rows[:0]
        number = int(hashes.sum(dtype=np.uint64))
        self._part_for(number, peaks.size, name).add(peaks, len(rows), hashes, sampled)

    def merge(self, other: ChannelObserver) -> None:
        """Adds what another observer has seen.

        Raises:
            DataError: it has other channels or keeps another number of rows.
        """
        if other.limit != self.limit:
            raise DataError(f"parts keep {self.limit} and {other.limit} rows")
        for place, part in other._parts.items():
            self._part(place, part.maxima.size).merge(part)
        if other._least is not None:
            number, part = other._least
            self._part_for(number, part.maxima.size).merge(part)

    def _part(self, place: int, channels: int, name: str = "tensor") -> Half:
        for part in self._all:
            if part.maxima.size != channels:
                raise DataError(f"tensor {name!r} has {channels} channels, not {part.maxima.size}")
        return self._parts.setdefault(place, Half(channels, self.limit))

    def _part_for(self, number: int, channels: int, name: str = "tensor") -> Half:
        """Where a feed of this hash goes; one with the smallest yet sends the last such on."""
        last = self._least
        if not self.limit or (last is not None and number >= last[0]):
            return self._part(_place(number), channels, name)
        if last is not None:
            self._part(_place(last[0]), channels, name).merge(last[1])
        self._least = number, Half(channels, self.limit)
        return self._least[1]

    def state(self) -> dict[str, Any]:
        """Everything seen, as JSON-able data; `from_state` is its inverse."""
        parts = [{"place": place, **p.state()} for place, p in sorted(self._parts.items())]
        apart = (
            [{"hash": number, **p.state()} for number, p in (self._least,)] if self._least else []
        )
        return {"limit": self.limit, "parts": parts, "apart": apart}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ChannelObserver:
        """Rebuilds an observer from `state()`.

        Raises:
            DataError: it is not one.
        """
        try:
            observer = cls(int(state["limit"]))
            for seen in state["parts"]:
                part = Half.from_state(seen, observer.limit)
                observer._part(int(seen["place"]), part.maxima.size).merge(part)
            for seen in state["apart"]:
                part = Half.from_state(seen, observer.limit)
                observer._part_for(int(seen["hash"]), part.maxima.size).merge(part)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not the state of a channel observer: {error!r}") from error
        return observer


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
        tensors: name → how many rows are kept of each half of the feeds, 0 for none.
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


def _place(number: int) -> int:
    """The part of a feed: the first two bits of its hash."""
    return number >> 62


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
