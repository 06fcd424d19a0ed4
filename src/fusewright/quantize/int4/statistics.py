"""What AWQ and GPTQ have to know of a Linear's input: mean magnitudes and second moments.

All come from the float model's own activations, one pass over the samples for every weight. GPTQ's
paper runs the partly rounded model again after each block, so that later layers see what the
earlier ones became; here that would be a session and a pass over the samples for every block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from fusewright.calibrate.runner import CalibrationOptions, watch
from fusewright.errors import DataError
from fusewright.graph.session import Feed
from fusewright.quantize.int4.sites import Int4Site

# Rows multiplied at once: 9 bits beside the 44 of a product are what float64 adds up exactly.
_ROWS = 512
_VALUE_BITS = 22
# A sum of 2^18 rows has 62 bits; what is above the lower 32 is then carried over.
_CARRY_AFTER = 1 << 18
_CARRY_BITS = 32
# Rows whose largest values lie between the same two powers of 16 share a grid.
_GRID_BITS = 4
_GRIDS = 5
_NOWHERE = -(1 << 20)
BUDGET = 1 << 31
"""Bytes of second moments in one pass over the samples: those of BERT-base take half of it."""


@dataclass(frozen=True)
class InputStatistics:
    """Of a tensor [..., K] that a Linear reads, over all its rows.

    Attributes:
        mean: mean|x| of each channel, float32 [K].
        moments: mean of xᵀx, float32 [K, K], symmetric.
        rows: how many there were.
    """

    mean: np.ndarray
    moments: np.ndarray
    rows: int

    def scaled(self, factor: np.ndarray) -> InputStatistics:
        """Those of x · factor, [K], positive."""
        return InputStatistics(
            self.mean * factor, self.moments * factor[:, None] * factor, self.rows
        )


def moments_of(site: Int4Site, statistics: Mapping[str, InputStatistics]) -> np.ndarray:
    """Second moments of what a weight multiplies: over all rows of all tensors it reads."""
    seen = [statistics[name] for name in site.reads]
    if len(seen) == 1:
        return seen[0].moments
    rows = sum(part.rows for part in seen)
    return np.asarray(sum(part.moments * (part.rows / rows) for part in seen), np.float32)


class MomentObserver:
    """Sums up |x| and xᵀx of the rows it is shown: the same bits in any order, batch or split.

    A row is rounded to integers on a grid of its own size (the power of 16 above its largest value,
    in steps of 2^-22 of that), so it counts alike whatever comes beside it, and integers add up
    exactly. Rows of other sizes have sums of their own; those more than four grids below the
    largest row weigh less than 2^-32 of it, and are left out.
    """

    def __init__(self, channels: int) -> None:
        """Has seen nothing yet."""
        self.rows = 0
        self._channels = channels
        self._grids: dict[int, _Grid] = {}

    def update(self, array: np.ndarray, name: str) -> None:
        """Adds the values of one feed, a float array [..., channels].

        Raises:
            DataError: NaN or Inf, not floating point, or another number of channels.
        """
        channels = self._channels
        if array.dtype.kind != "f" or not array.ndim or array.shape[-1] != channels:
            raise DataError(
                f"tensor {name!r} is {array.dtype} {list(array.shape)}, not float with"
                f" {channels} channels"
            )
        rows = np.ascontiguousarray(array, np.float32).reshape(-1, channels)
        self.rows += len(rows)
        peaks = np.maximum(rows.max(axis=1, initial=0.0), -rows.min(axis=1, initial=0.0))
        if not np.isfinite(peaks).all():
            raise DataError(f"tensor {name!r} holds NaN or Inf while the model runs")
        places = -(-np.frexp(peaks)[1] // _GRID_BITS)
        places[peaks == 0] = _NOWHERE
        for place in np.unique(places):
            self._add(rows[places == place], int(place))

    def _add(self, rows: np.ndarray, place: int) -> None:
        top = max((place, *self._grids))
        if place == _NOWHERE or place <= top - _GRIDS:
            return
        for old in [old for old in self._grids if old <= top - _GRIDS]:
            del self._grids[old]
        if place not in self._grids:
            self._grids[place] = _Grid(self._channels)
        for start in range(0, len(rows), _ROWS):
            part = np.ldexp(rows[start : start + _ROWS].astype(np.float64), _step(place))
            self._grids[place].add(np.rint(part))

    def statistics(self, name: str) -> InputStatistics:
        """The means; ends the observation, as the sums are given up for them.

        Raises:
            DataError: no row was seen.
        """
        if not self.rows:
            raise DataError(f"tensor {name!r} was empty on every sample")
        mean = np.zeros(self._channels, np.float64)
        moments = np.zeros((self._channels, self._channels), np.float64)
        for place in sorted(self._grids):
            magnitudes, products = self._grids.pop(place).totals()
            mean += np.ldexp(magnitudes, -_step(place))
            moments += np.ldexp(products, -2 * _step(place))
        mean /= self.rows
        moments /= self.rows
        return InputStatistics(mean.astype(np.float32), moments.astype(np.float32), self.rows)


class _Grid:
    """Exact sums of rows of integers up to 2^22: a product of `_ROWS` rows stays below 2^53."""

    def __init__(self, channels: int) -> None:
        self._sum = np.zeros(channels, np.int64)
        self._products = np.zeros((channels, channels), np.int64)
        self._carried: np.ndarray | None = None
        self._since = 0

    def add(self, rows: np.ndarray) -> None:
        if self._since + len(rows) > _CARRY_AFTER:
            self._carry()
        self._sum += np.abs(rows).sum(axis=0).astype(np.int64)
        self._products += (rows.T @ rows).astype(np.int64)
        self._since += len(rows)

    def _carry(self) -> None:
        if self._carried is None:
            self._carried = np.zeros_like(self._products)
        self._carried += self._products >> _CARRY_BITS
        self._products &= (1 << _CARRY_BITS) - 1
        self._since = 0

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of |x|, and of xᵀx, float64; the same bits wherever a carry came."""
        if self._carried is not None:
            self._carry()
            products = np.ldexp(self._carried.astype(np.float64), _CARRY_BITS)
            return self._sum.astype(np.float64), products + self._products
        return self._sum.astype(np.float64), self._products.astype(np.float64)


def _step(place: int) -> int:
    """The power of two that makes integers of the rows of a grid."""
    return _VALUE_BITS - _GRID_BITS * place


def plan_passes(sites: Sequence[Int4Site], budget: int = BUDGET) -> list[tuple[Int4Site, ...]]:
    """Cuts the sites into parts whose moments stay below `budget` bytes each, the last one first.

    Each part takes a pass over the samples, on the float model as it was before the first part.
    Weights that read the same tensor stay together, and a tensor above the budget has a pass of its
    own. From the last to the first, because `scale_channels` divides weights in front of a part,
    which must not be rounded by then.
    """
    alike: dict[tuple[str, ...], list[Int4Site]] = {}
    for site in sites:
        alike.setdefault(site.reads, []).append(site)
    parts: list[list[Int4Site]] = []
    left = 0
    for reads, together in reversed(alike.items()):
        needed = 8 * len(reads) * together[0].shape[0] ** 2
        if not parts or needed > left:
            parts.append([])
            left = budget
        parts[-1] = together + parts[-1]
        left -= needed
    return [tuple(part) for part in parts]


def observe_inputs(
    model: Path | bytes | onnx.ModelProto,
    sites: Iterable[Int4Site],
    samples: Iterable[Feed],
    options: CalibrationOptions = CalibrationOptions(),  # noqa: B008 - frozen
    progress: Callable[[int], None] | None = None,
) -> dict[str, InputStatistics]:
    """One pass over the samples: statistics of every tensor that the sites' weights multiply.

    Memory: 8·K² bytes for each such tensor, as often again where rows differ 16 times in size,
    beside one sample's activations; see `plan_passes`.

    Args:
        model: the flat float model that the sites are of.
        sites: the weights.
        samples: feeds; one is in memory at a time.
        options: limits; the method plays no part.
        progress: called after each feed with the number of samples seen so far.

    Raises:
        ModelError: a tensor is not in the main graph, or the model does not load.
        DataError: there are no samples, the model fails on one, or a tensor holds NaN or Inf.
    """
    channels = {name: site.shape[0] for site in sites for name in site.reads}
    observers = {name: MomentObserver(size) for name, size in channels.items()}
    watching = {name: [observer] for name, observer in observers.items()}
    watch(model, watching, samples, options, progress)
    return {name: observer.statistics(name) for name, observer in observers.items()}
