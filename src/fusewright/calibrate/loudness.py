"""Samples that are far larger than the others: not normalized like them, mostly.

One image that was not divided by 255 among 16 stretches every range by 255 where the maximum
decides, and the file has 5 dB on all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusewright.calibrate.samples import Samples

# Times the median sample. Dark and bright images are 4 apart, quiet and loud speech 10; 0 to 255
# beside 0 to 1 is 255, beside images of unit variance 100.
_LOUD = 20.0
_NAMED = 3


class SampleMaxima:
    """Watches a tensor: its largest finite magnitude on each sample, in their order."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self.maxima: list[float] = []

    def update(self, array: np.ndarray, name: str = "tensor") -> None:
        """Adds one sample's values."""
        peak = max(abs(float(array.max())), abs(float(array.min()))) if array.size else 0.0
        if not np.isfinite(peak):
            finite = array[np.isfinite(array)]
            peak = float(np.abs(finite).max()) if finite.size else 0.0
        self.maxima.append(peak)


def loud_samples(maxima: Sequence[float]) -> dict[int, float]:
    """Position of each sample that stands out → how many times the median it reaches."""
    # Of an even number the lower one: as many that are loud as are not are told too.
    middle = sorted(maxima)[(len(maxima) - 1) // 2] if maxima else 0.0
    if middle <= 0:  # a mask that most samples do without
        return {}
    return {i: peak / middle for i, peak in enumerate(maxima) if peak > _LOUD * middle}


def loud_notes(seen: Mapping[str, SampleMaxima], samples: Samples) -> list[str]:
    """A line for each input on which some samples stand out.

    Args:
        seen: by input.
        samples: what was seen; its last pass knows where each came from.
    """
    notes = []
    for name, watched in seen.items():
        found = loud_samples(watched.maxima)
        if not found:
            continue
        worst = max(found, key=lambda i: found[i])
        named = ", ".join(_named(i, samples) for i in list(found)[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        notes.append(
            f"calibration sample {named}{more}: input '{name}' reaches"
            f" {watched.maxima[worst]:.4g}, {found[worst]:.0f} times the median sample; if it is"
            " not normalized like the others, take it out: it widens the ranges of all"
        )
    return notes


def _named(position: int, samples: Samples) -> str:
    first, places = position * samples.batch, samples.places
    number = f"{first}" if samples.batch == 1 else f"{first} to {first + samples.batch - 1}"
    return f"{number} ({places[position]})" if position < len(places) else number
