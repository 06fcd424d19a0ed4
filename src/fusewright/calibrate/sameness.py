"""Calibration data that shows little: black images, one value alone, one sample many times.

Nothing fails on it, and the figures on it are good; the ranges are too narrow for all else.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class SampleVariety:
    """Watches an input: whether its values differ within a sample, and samples among each other.

    Attributes:
        count: how many samples it has seen.
        is_flat: whether each sample holds one value alone, and is more than a single number.
    """

    def __init__(self, batch: int = 1) -> None:
        """Has seen nothing yet; `batch` is how many samples axis 0 of an array holds."""
        self.count = 0
        self.is_flat = True
        self._batch = batch
        self._first: np.ndarray | None = None
        self._equal = True

    def update(self, array: np.ndarray, name: str = "tensor") -> None:
        """Adds the values of one feed."""
        batched = array.ndim > 0 and array.shape[0] == self._batch
        for sample in array if batched else array[None]:
            self.count += 1
            if self._first is None:
                self._first = sample.copy()
            self.is_flat = self.is_flat and sample.size > 1 and bool(np.ptp(sample) == 0)
            self._equal = self._equal and np.array_equal(sample, self._first)

    @property
    def alone(self) -> float | None:
        """The one value that all samples hold; None where there are others."""
        if not self.is_flat or not self._equal or self._first is None:
            return None
        return float(self._first.reshape(-1)[0])

    @property
    def is_repeated(self) -> bool:
        """Whether there are several samples, and all of them are equal."""
        return self._equal and self.count > 1


def sameness_notes(seen: Mapping[str, SampleVariety]) -> list[str]:
    """A line for each input that shows nothing, or one for data that is a single sample.

    Args:
        seen: by input; all that hold values, not sizes or indices.
    """
    flat = {name: watched for name, watched in seen.items() if watched.is_flat and watched.count}
    notes = [
        f"input '{name}' holds {_held(watched)} of the {watched.count} calibration samples: ranges"
        " from them say nothing of other values"
        for name, watched in flat.items()
    ]
    if len(flat) < len(seen) and all(watched.is_repeated for watched in seen.values()):
        count = max(watched.count for watched in seen.values())
        notes.append(
            f"the {count} calibration samples are all the same: ranges from them may be too narrow"
            " for others"
        )
    return notes


def _held(watched: SampleVariety) -> str:
    return "one value in each" if watched.alone is None else f"{watched.alone:g} alone in all"
