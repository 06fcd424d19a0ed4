"""Inputs that hold sizes: an engine is built for their values, which the samples show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fusewright.calibrate import RandomSamples, Samples
from fusewright.engine.ranges import Shape, ShapeRange
from fusewright.graph.session import Feed, TensorSpec


def sizes_of(
    samples: Samples, calibration: Any, inputs: Sequence[TensorSpec], count: int | None
) -> dict[str, ShapeRange]:
    """Smallest, middle and largest values of the inputs that may hold sizes; those of no other.

    Args:
        samples: of them, what comes only once is looked at as far as it was taken.
        calibration: what they were opened from: random numbers say nothing.
        inputs: of the model.
        count: how many samples are used; None takes all.
    """
    names = [spec.name for spec in inputs if spec.may_hold_sizes]
    if not names or isinstance(calibration, RandomSamples):
        return {}
    return seen_sizes(names, samples.preview(1 if samples.come_once else count))


def seen_sizes(names: Sequence[str], feeds: Iterable[Feed]) -> dict[str, ShapeRange]:
    """Smallest, middle and largest values that these inputs hold in the feeds, place by place."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for feed in feeds:
        for name in names:
            seen[name].append(feed[name].reshape(-1))
    found = {}
    for name, rows in seen.items():
        values = np.sort(np.stack(rows), axis=0)
        found[name] = (_as(values[0]), _as(values[(len(rows) - 1) // 2]), _as(values[-1]))
    return found


def _as(values: np.ndarray) -> Shape:
    return tuple(int(value) for value in values)
