"""Calibration samples: one feed at a time, from whatever holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fusewright.calibrate.arrays import from_memory
from fusewright.calibrate.feeding import Block, feeds, fit_block
from fusewright.calibrate.fitting import group_size
from fusewright.calibrate.folders import open_path
from fusewright.calibrate.images import ImageOptions
from fusewright.calibrate.random_data import RandomSamples
from fusewright.calibrate.readers import (
    can_start_again,
    is_reader_name,
    load_reader,
    reader_blocks,
)
from fusewright.errors import DataError
from fusewright.graph.session import TensorSpec

Arrays = dict[str, np.ndarray]


class Samples:
    """Feeds for a model: iterate for all of them, `take(n)` for the first few.

    A source that gives its samples only once (a generator, a reader without `rewind`) is kept
    for what `take` handed out, so that the pass over all of them still starts at the first.

    Attributes:
        batch: samples in one feed, as the first input of the model has it.
        total: number of samples, where it is known without reading (for a progress bar).
        notes: what was left out, filled by a complete pass.
    """

    def __init__(
        self,
        start: Callable[[list[str]], Iterator[Arrays]],
        *,
        batch: int = 1,
        total: int | None = None,
        once: bool = False,
    ) -> None:
        """`start` begins a pass and appends to the list what it leaves out."""
        self.batch = batch
        self.total = total
        self.notes: list[str] = []
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
        self.notes.clear()
        if not self._once:
            return self._start(self.notes)
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
            self._stream = self._start(self.notes)
        return self._stream

    def take(self, n: int) -> list[Arrays]:
        """The feeds that hold the first `n` samples (at least one feed, fewer where there are)."""
        wanted = self.feeds_for(n)
        if not self._once:
            return list(islice(self._start([]), wanted))
        if self._spent:
            raise DataError("the reader gives its samples only once; take() comes before the pass")
        self._head.extend(islice(self._resume(), max(wanted - len(self._head), 0)))
        return self._head[:wanted]

    def limit(self, n: int | None) -> Iterator[Arrays]:
        """One pass over the feeds that hold the first `n` samples, over all where n is None."""
        return iter(self) if n is None else islice(iter(self), self.feeds_for(n))

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
            `test_data_set_*`; `module:name` of a reader; a dict of arrays; an iterable of dicts;
            an object with `get_next()`; or `RandomSamples`.
        inputs: the model's inputs. The model, not the data, fixes how many samples a feed has:
            1 where axis 0 is dynamic, else its size.
        images: preprocessing for folders of images.

    Raises:
        DataError: there is no such data, or its first file does not fit the inputs. Later files
            are checked when they are reached.
        UsageError: random data with shapes that do not fit.
    """
    batch = next((group_size(spec) for spec in inputs), 1)
    if isinstance(source, RandomSamples):
        next(source.feeds(inputs))
        return Samples(lambda _: source.feeds(inputs), batch=batch, total=source.count * batch)
    start, once = _open(source, inputs, images)
    if once:
        return Samples(lambda notes: feeds(start(), inputs, notes), batch=batch, once=True)
    return Samples(
        lambda notes: feeds(start(), inputs, notes),
        batch=batch,
        total=_count(start(), inputs, isinstance(source, Mapping)),
    )


def _open(
    source: Any, inputs: Sequence[TensorSpec], images: ImageOptions
) -> tuple[Callable[[], Iterable[Block]], bool]:
    """How to start a pass, and whether there is only one."""
    if isinstance(source, Mapping):
        label = "calibration data"
        arrays = {str(name): from_memory(a, f"{label}, {name!r}") for name, a in source.items()}
        return lambda: (Block(label, arrays),), False
    if isinstance(source, (str, Path)):
        text = str(source)
        if not is_reader_name(text) or Path(text).exists():
            return open_path(Path(source), inputs, images), False
        reader = load_reader(text)
        return lambda: reader_blocks(reader, f"reader {text!r}"), not can_start_again(reader)
    if hasattr(source, "get_next") or isinstance(source, Iterable) or callable(source):
        label = f"reader {type(source).__name__}"
        return lambda: reader_blocks(source, label), not can_start_again(source)
    raise DataError(f"a {type(source).__name__} is no calibration data")


def _count(blocks: Iterable[Block], inputs: Sequence[TensorSpec], whole: bool) -> int | None:
    """Checks the first block; the number of samples where that is the only one."""
    if isinstance(blocks, tuple) or whole:
        (block,) = blocks
        fitted = fit_block(block, inputs)
        return max(item.units for item in fitted) if fitted else None
    for block in blocks:
        fit_block(block, inputs)
        return None
    return None
