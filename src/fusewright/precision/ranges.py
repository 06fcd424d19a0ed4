"""How large, and where it matters how small, each float tensor gets on the calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """

    maximum: float
    smallest: float | None = None


@dataclass(frozen=True)
class TensorRanges:
    """The ranges of a model's float tensors.

    Attributes:
        masks: reads of stored tensors, as (node, position), that were masks → the magnitude that
            the plan gives them, and with which they counted.
        samples: how many were seen.
    """

    tensors: Mapping[str, TensorRange]
    masks: Mapping[tuple[str, int], float]
    samples: int

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
        peak = max(float(array.max()), -float(array.min()))
        self.maximum = max(self.maximum, peak if np.isfinite(peak) else np.inf)
        if self._wants_smallest:
            magnitudes = np.abs(array)
            self.smallest = min(
                self.smallest, float(np.min(magnitudes, initial=np.inf, where=magnitudes > 0))
            )

    def range(self) -> TensorRange:
        """What was seen."""
        found = self._wants_smallest and np.isfinite(self.smallest)
        return TensorRange(self.maximum, self.smallest if found else None)


def gathered(
    observers: Mapping[str, Sequence[RangeObserver]],
    masks: Mapping[tuple[str, int], float],
    samples: int,
) -> TensorRanges:
    """The ranges of tensors, each seen by one or more observers."""
    tensors = {}
    for name, seen in observers.items():
        parts = [observer.range() for observer in seen]
        small = [part.smallest for part in parts if part.smallest is not None]
        tensors[name] = TensorRange(max(p.maximum for p in parts), min(small, default=None))
    return TensorRanges(tensors, masks, samples)
