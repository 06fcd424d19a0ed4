"""From blocks of arrays to feeds: batches of the model's size, whatever the blocks' own size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice

import numpy as np

from fusewright.calibrate.arrays import ArraySource
from fusewright.calibrate.fitting import Fitted, fit, group_size
from fusewright.errors import DataError
from fusewright.graph.session import TensorSpec


@dataclass(frozen=True)
class Block:
    """Arrays that belong together: one file, one dict of a reader, one folder of a data set."""

    where: str
    arrays: Mapping[str, ArraySource]


@dataclass(frozen=True)
class Told:
    """What a pass over samples tells beside them.

    Attributes:
        notes: what was left out.
        places: for each feed, where it came from: the last of several blocks that it is made of.
    """

    notes: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)


def feeds(
    blocks: Iterable[Block],
    inputs: Sequence[TensorSpec],
    told: Told,
    where: str = "calibration data",
) -> Iterator[dict[str, np.ndarray]]:
    """Yields one feed at a time; rows left over in one block go on with the next.

    `where` names what the blocks come from, for a message where there is none.

    Raises:
        DataError: a block does not fit the inputs, or there is no complete feed in all of them.
    """
    feeder = _Feeder({spec.name: [] for spec in inputs})
    given = 0
    for block in blocks:
        where = block.where
        for feed in feeder.add(fit_block(block, inputs)):
            given += 1
            told.places.append(where)
            yield feed
    _settle(feeder, inputs, given, where, told.notes)


def fit_block(block: Block, inputs: Sequence[TensorSpec]) -> list[Fitted]:
    """Checks names, shapes, dtypes and counts of a block without reading its values.

    Raises:
        DataError: the first thing that does not fit.
    """
    wanted = [spec.name for spec in inputs]
    listed = ", ".join(repr(name) for name in wanted)
    for name in block.arrays:
        if name not in wanted:
            raise DataError(f"{block.where}: array {name!r} is no input of the model ({listed})")
    for name in wanted:
        if name not in block.arrays:
            raise DataError(f"{block.where}: no array for input {name!r} (inputs: {listed})")
    fitted = [fit(block.arrays[spec.name], spec) for spec in inputs]
    for item in fitted:
        if item.units == 0:
            raise DataError(f"{item.source.where}: holds no samples")
    _feed_count(fitted, block.where)
    return fitted


def _feed_count(fitted: Sequence[Fitted], where: str) -> Fraction:
    """Feeds in a block: the same for all inputs, except for those with just one."""
    several = {item.feeds for item in fitted if item.feeds != 1}
    if len(several) > 1:
        counts = ", ".join(f"{item.spec.name!r} {item.units}" for item in fitted)
        raise DataError(f"{where}: inputs hold different numbers of samples: {counts}")
    return several.pop() if several else Fraction(1)


@dataclass
class _Feeder:
    """Rows that wait, by input, until they fill a feed."""

    waiting: dict[str, list[np.ndarray]]
    rows_seen: dict[str, int] = field(default_factory=dict)

    def add(self, fitted: Sequence[Fitted]) -> Iterator[dict[str, np.ndarray]]:
        count = _feed_count(fitted, "")
        held = {
            item.spec.name: _join(list(item.rows()), item)
            for item in fitted
            if item.feeds == 1 and count != 1
        }
        streams = [(item, item.rows()) for item in fitted if item.spec.name not in held]
        for item, _ in streams:
            name = item.spec.name
            self.rows_seen[name] = self.rows_seen.get(name, 0) + item.units
        ready = min(
            (len(self.waiting[item.spec.name]) + item.units) // item.group for item, _ in streams
        )
        for _ in range(ready):
            yield {item.spec.name: self._next(item, rows) for item, rows in streams} | held
        for item, rows in streams:
            # Rows beyond the last full feed; reading on also checks the end of each file.
            self.waiting[item.spec.name].extend(rows)

    def _next(self, item: Fitted, rows: Iterator[np.ndarray]) -> np.ndarray:
        waiting = self.waiting[item.spec.name]
        while len(waiting) < item.group:
            taken = list(islice(rows, item.group - len(waiting)))
            if not taken:
                raise DataError(f"{item.source.where}: ends before its {item.units} samples")
            waiting.extend(taken)
        group, self.waiting[item.spec.name] = waiting[: item.group], waiting[item.group :]
        return _join(group, item)


def _join(rows: Sequence[np.ndarray], item: Fitted) -> np.ndarray:
    if item.whole or len(rows) == 1:
        return np.ascontiguousarray(rows[0]).reshape(rows[0].shape)
    if len({row.shape for row in rows}) > 1:
        sizes = ", ".join(sorted({str(list(row.shape[1:])) for row in rows}))
        raise DataError(
            f"{item.source.where}: the model takes {item.group} samples at a time, "
            f"these have different sizes: {sizes}"
        )
    return np.concatenate(rows)


def _settle(
    feeder: _Feeder, inputs: Sequence[TensorSpec], given: int, where: str, notes: list[str]
) -> None:
    """What is left at the end: an error where there was no feed at all, a note otherwise."""
    left = [(spec, len(rows)) for spec in inputs if (rows := feeder.waiting[spec.name])]
    if not left and not given:
        raise DataError(f"{where}: no calibration samples")
    for spec, count in left:
        size, seen = group_size(spec), feeder.rows_seen[spec.name]
        if not given:
            raise DataError(
                f"{where}: {seen} samples for input {spec.name!r}, the model takes {size} at a time"
            )
        notes.append(
            f"{count} of {seen} samples left out: input {spec.name!r} takes {size} at a time"
        )
