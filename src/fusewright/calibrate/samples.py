"""Calibration samples: one feed at a time, from whatever holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fusewright.calibrate.arrays import from_memory
from fusewright.calibrate.feeding import Block, Told, feeds, fit_block
from fusewright.calibrate.fitting import group_size
from fusewright.calibrate.folders import PathData, only_input, open_path
from fusewright.calibrate.images import ImageOptions
from fusewright.calibrate.random_data import RandomSamples
from fusewright.calibrate.readers import (
    can_start_again,
    is_reader_name,
    load_reader,
    reader_blocks,
)
from fusewright.calibrate.reading import users_code
from fusewright.errors import DataError
from fusewright.graph.refused import IN_FLOAT32
from fusewright.graph.session import TensorSpec

Arrays = dict[str, np.ndarray]


class Samples:
    """Feeds for a model: iterate for all of them, `take(n)` for the first few.

    A source that gives its samples only once (a generator, a reader without `rewind`) is kept
    for what `take` handed out, so that the pass over all of them still starts at the first.

    Attributes:
        batch: samples in one feed, as the first input of the model has it.
        total: number of samples, where it is known without reading (for a progress bar).
    """

    def __init__(
        self,
        start: Callable[[Told], Iterator[Arrays]],
        *,
        batch: int = 1,
        total: int | None = None,
        once: bool = False,
    ) -> None:
        """`start` begins a pass, and tells what it leaves out and where feeds come from."""
        self.batch = batch
        self.total = total
        self._told = Told()
        self._start = start
        self._once = once
        self._stream: Iterator[Arrays] | None = None
        self._head: list[Arrays] = []
        self._spent = False

    def __iter__(self) -> Iterator[Arrays]:
        """Yields every feed: input name to array, exactly the model's inputs and dtypes.

        Raises:
            DataError: the data does not fit, or a source that can be read only once was.
        """
        if not self._once:
            self._told = Told()
            return self._start(self._told)
        if self._spent:
            raise DataError("the reader gives its samples only once; give it a rewind() method")
        self._spent = True
        head, self._head = self._head, []
        return self._chain(head)

    def _chain(self, head: list[Arrays]) -> Iterator[Arrays]:
        while head:
            yield head.pop(0)
        yield from self._resume()

    def _resume(self) -> Iterator[Arrays]:
        if self._stream is None:
            self._stream = self._start(self._told)
        return self._stream

    @property
    def notes(self) -> list[str]:
        """What the last pass left out, where it was complete."""
        return self._told.notes

    @property
    def places(self) -> list[str]:
        """Where the feeds of the last pass came from, as far as it went: a file, an item."""
        return self._told.places

    @property
    def come_once(self) -> bool:
        """Whether the source gives its samples only once."""
        return self._once

    def take(self, n: int) -> list[Arrays]:
        """The feeds that hold the first `n` samples (at least one feed, fewer where there are)."""
        wanted = self.feeds_for(n)
        if not self._once:
            return list(islice(self._start(Told()), wanted))
        if self._spent:
            raise DataError("the reader gives its samples only once; take() comes before the pass")
        self._head.extend(islice(self._resume(), max(wanted - len(self._head), 0)))
        return self._head[:wanted]

    def limit(self, n: int | None) -> Iterator[Arrays]:
        """One pass over the feeds that hold the first `n` samples, over all where n is None."""
        return iter(self) if n is None else islice(iter(self), self.feeds_for(n))

    def preview(self, n: int | None) -> Iterable[Arrays]:
        """A pass over the first `n` samples (None: all) that leaves a later pass whole.

        Raises:
            DataError: all are wanted of a source that gives its samples only once.
        """
        if not self._once:
            return self.limit(n)
        if n is None:
            raise DataError("the reader gives its samples only once; give it a rewind() method")
        return self.take(n)

    def feeds_for(self, n: int) -> int:
        """How many feeds hold `n` samples; what fills no feed is left out, but one is kept."""
        return max(1, n // self.batch)


def open_samples(
    source: str | Path | Iterable[Any] | object,
    inputs: Sequence[TensorSpec],
    images: ImageOptions = ImageOptions(),  # noqa: B008 - frozen
) -> Samples:
    """Opens calibration data for a model with `inputs`.

    Args:
        source: an .npz (arrays by input name) or .npy file; a folder of either, of images, or of
            `test_data_set_*`; `module:name` of a reader; a dict of arrays; an array for a model of
            one input; an iterable of dicts; an object with `get_next()`; or `RandomSamples`.
        inputs: the model's inputs. The model, not the data, fixes how many samples a feed has:
            1 where axis 0 is dynamic, else its size.
        images: preprocessing for folders of images.

    Raises:
        DataError: there is no such data, or it does not fit the inputs, or an input is BF16. Arrays
            are checked by their headers here; images and what readers give, after the first, when
            reached.
        UsageError: random data with shapes that do not fit.
    """
    batch = next((group_size(spec) for spec in inputs), 1)
    for spec in inputs:
        if spec.dtype == ml_dtypes.bfloat16:
            raise DataError(
                f"input {spec.name!r} is BF16, and onnxruntime's CPU takes no such samples:"
                f" {IN_FLOAT32}"
            )
    if isinstance(source, RandomSamples):
        next(source.feeds(inputs))
        return Samples(lambda _: source.feeds(inputs), batch=batch, total=source.count * batch)
    data, once = _open(source, inputs, images)
    total = None if once else _count(data, inputs)
    return Samples(
        lambda told: feeds(data.start(), inputs, told, data.where),
        batch=batch,
        total=total,
        once=once,
    )


def _open(source: Any, inputs: Sequence[TensorSpec], images: ImageOptions) -> tuple[PathData, bool]:
    """How to start a pass, and whether there is only one."""
    if isinstance(source, np.ndarray):
        source = {only_input(inputs, "an array").name: source}
    if isinstance(source, Mapping):
        label = "calibration data"
        arrays = {str(name): from_memory(a, f"{label}, {name!r}") for name, a in source.items()}
        return PathData(lambda: (Block(label, arrays),), headers_tell=True), False
    if isinstance(source, (str, Path)):
        text = str(source)
        if not is_reader_name(text) or Path(text).exists():
            return open_path(Path(source), inputs, images), False
        source, label = load_reader(text), f"reader {text!r}"
    else:
        label = f"reader {type(source).__name__}"
    with users_code(label):
        if not (hasattr(source, "get_next") or isinstance(source, Iterable) or callable(source)):
            raise DataError(f"{label}: no calibration data: no get_next() and not iterable")
        data = PathData(lambda: reader_blocks(source, label), where=label)
        return data, not can_start_again(source)


def _count(data: PathData, inputs: Sequence[TensorSpec]) -> int | None:
    """Checks all that can be checked without reading values; the number of samples, if known."""
    if data.headers_tell:
        fitted = [fit_block(block, inputs) for block in data.start()]
        return sum(max((item.units for item in block), default=0) for block in fitted)
    for block in data.start():
        fit_block(block, inputs)
        break
    return data.images
