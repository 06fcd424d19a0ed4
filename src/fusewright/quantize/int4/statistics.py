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

# Rows multiplied at once: a product's memory, and the float32 sum inside it, stay small.
_ROWS = 4096
BUDGET = 1 << 30
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
    """Sums up |x| and xᵀx of the rows it is shown.

    The same samples in the same feeds give the same bits; in other feeds, what rounding makes of
    them (float32 sums of some hundred products: some 1e-6, where GPTQ's damping is 1e-2).
    """

    def __init__(self, channels: int) -> None:
        """Has seen nothing yet."""
        self.rows = 0
        self._sum = np.zeros(channels, np.float64)
        self._products = np.zeros((channels, channels), np.float32)

    def update(self, array: np.ndarray, name: str) -> None:
        """Adds the values of one feed, a float array [..., channels].

        Raises:
            DataError: NaN or Inf, not floating point, or another number of channels.
        """
        channels = self._sum.size
        if array.dtype.kind != "f" or not array.ndim or array.shape[-1] != channels:
            raise DataError(
                f"tensor {name!r} is {array.dtype} {list(array.shape)}, not float with"
                f" {channels} channels"
            )
        rows = np.ascontiguousarray(array, np.float32).reshape(-1, channels)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            magnitude = np.abs(part).sum(axis=0, dtype=np.float64)
            if not np.isfinite(magnitude).all():
                raise DataError(f"tensor {name!r} holds NaN or Inf while the model runs")
            self._sum += magnitude
            self._products += part.T @ part
        self.rows += len(rows)

    def statistics(self, name: str) -> InputStatistics:
        """The means; ends the observation, as the sums are turned into them.

        Raises:
            DataError: no row was seen.
        """
        if not self.rows:
            raise DataError(f"tensor {name!r} was empty on every sample")
        mean = (self._sum / self.rows).astype(np.float32)
        self._products /= self.rows
        return InputStatistics(mean, self._products, self.rows)


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
        needed = 4 * len(reads) * together[0].shape[0] ** 2
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

    Memory: 4·K² bytes for each such tensor, beside one sample's activations; see `plan_passes`.

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
