"""How large, and where it matters how small, each float tensor gets on the calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusewright.errors import DataError


@dataclass(frozen=True)
class TensorRange:
    """What the samples show of one tensor.

    Attributes:
        maximum: largest magnitude; infinite where a value was NaN or Inf.
        smallest: smallest magnitude that is not 0, of a tensor that something is divided by; None
            where it was not asked for, or there is none.
        lowest, highest: with their sign.
    """

    maximum: float
    smallest: float | None = None
    lowest: float = -np.inf
    highest: float = np.inf


@dataclass(frozen=True)
class Logits:
    """What the samples show of the rows that a Softmax reads: what lies far below a row's maximum
    does not count, and neither does anything of a row that has one element alone.

    Attributes:
        top: largest magnitude of a row's maximum.
        unsettled: root mean square of the maxima, each times what its probability lacks to 1, on
            the worst sample. An error of one part in n of the logits is one of `unsettled`/n of the
            probabilities.
    """

    top: float
    unsettled: float


@dataclass(frozen=True)
class TensorRanges:
    """The ranges of a model's float tensors.

    Attributes:
        masks: reads of stored tensors, as (node, position), that were masks → the magnitude that
            the plan gives them, and with which they counted.
        samples: how many were seen.
        logits: of each tensor that Softmax reads.
    """

    tensors: Mapping[str, TensorRange]
    masks: Mapping[tuple[str, int], float]
    samples: int
    logits: Mapping[str, Logits] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        tensors = {name: [r.maximum, r.smallest] for name, r in self.tensors.items()}
        masks = [[*slot, limit] for slot, limit in self.masks.items()]
        return {"samples": self.samples, "masks": masks, "tensors": tensors}


class RangeObserver:
    """Watches one tensor, or its largest and smallest values taken in the graph."""

    def __init__(self, wants_smallest: bool = False) -> None:
        """Has seen nothing yet."""
        self.maximum, self.smallest = 0.0, np.inf
        self.lowest, self.highest = np.inf, -np.inf
        self._wants_smallest = wants_smallest

    def update(self, array: np.ndarray, name: str) -> None:
        """Adds the values of a float array of any shape; NaN and Inf count as infinite.

        Raises:
            DataError: it is not floating point.
        """
        if array.dtype.kind != "f":
            raise DataError(f"tensor {name!r} is {array.dtype}, not floating point")
        if not array.size:
            return
        highest, lowest = float(array.max()), float(array.min())
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        peak = max(highest, -lowest)
        self.maximum = max(self.maximum, peak if np.isfinite(peak) else np.inf)
        if self._wants_smallest:
            magnitudes = np.abs(array)
            self.smallest = min(
                self.smallest, float(np.min(magnitudes, initial=np.inf, where=magnitudes > 0))
            )

    def range(self) -> TensorRange:
        """What was seen."""
        found = self._wants_smallest and np.isfinite(self.smallest)
        smallest = self.smallest if found else None
        return TensorRange(self.maximum, smallest, self.lowest, self.highest)


def gathered(
    observers: Mapping[str, Sequence[RangeObserver]],
    masks: Mapping[tuple[str, int], float],
    samples: int,
    rows: Mapping[str, tuple[RangeObserver, RangeObserver]],
) -> TensorRanges:
    """The ranges of tensors, each seen by one or more observers.

    Args:
        observers: of each tensor.
        masks: as in the result.
        samples: how many were seen.
        rows: of what Softmax reads, the observers of `Logits.top` and of the square of its other.
    """
    tensors = {}
    for name, seen in observers.items():
        parts = [observer.range() for observer in seen]
        small = [part.smallest for part in parts if part.smallest is not None]
        tensors[name] = TensorRange(
            max(part.maximum for part in parts),
            min(small, default=None),
            min(part.lowest for part in parts),
            max(part.highest for part in parts),
        )
    logits = {
        name: Logits(top.range().maximum, square.range().maximum ** 0.5)
        for name, (top, square) in rows.items()
    }
    return TensorRanges(tensors, masks, samples, logits)
