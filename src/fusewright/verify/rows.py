"""Which outputs hold one row for each row of the inputs: each row of such a batch is a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fusewright.errors import DataError
from fusewright.graph.session import Feed

# Kernels of onnxruntime sum the last rows of a matrix in another order than the first.
_EQUAL = 1e-5

Runner = Callable[[Feed, Sequence[str]], Mapping[str, np.ndarray]]


def batch_of(feed: Feed) -> int:
    """The size of axis 0 that inputs have in common; 1 where they do not agree on one.

    Inputs that have no axis 0, or a size of 1 there, are shared by all rows.
    """
    sizes = {array.shape[0] for array in feed.values() if array.ndim}
    sizes.discard(1)
    return sizes.pop() if len(sizes) == 1 else 1


class Rows:
    """Tells outputs whose axis 0 is the batch from those where it is anything else.

    A sequence has an axis 0 as well, and a matrix of all images against all texts has one of the
    right size. So the model is run once more, on a batch that is its first row throughout: where
    rows do not meet, each row of the output is what the first one was.
    """

    def __init__(self, run: Runner) -> None:
        """`run` gives outputs of the reference, by name."""
        self._run = run
        self._is_batched: dict[str, bool] = {}

    def of(self, feed: Feed, values: Mapping[str, np.ndarray]) -> set[str]:
        """The outputs that are a batch on this sample.

        Args:
            feed: the sample.
            values: what the reference gives on it.
        """
        size = batch_of(feed)
        if size < 2:
            return set()
        possible = [name for name, value in values.items() if np.shape(value)[:1] == (size,)]
        new = [name for name in possible if name not in self._is_batched]
        if new:
            self._look(feed, {name: values[name] for name in new}, size)
        return {name for name in possible if self._is_batched[name]}

    def _look(self, feed: Feed, values: Mapping[str, np.ndarray], size: int) -> None:
        repeated = {
            name: np.repeat(array[:1], size, axis=0) if array.shape[:1] == (size,) else array
            for name, array in feed.items()
        }
        try:
            found = self._run(repeated, list(values))
        except DataError:  # rows that fit only beside each other are no samples
            found = {}
        for name, value in values.items():
            self._is_batched[name] = name in found and _repeats(value, found[name])


def _repeats(value: np.ndarray, found: np.ndarray) -> bool:
    """Whether every row of `found` is the first one of `value`."""
    if value.shape != found.shape:
        return False
    wanted = np.broadcast_to(value[:1], value.shape)
    if value.dtype.kind != "f":
        return bool(np.array_equal(found, wanted))
    one, other = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return False
    one, other = np.where(finite, one, 0.0), np.where(finite, other, 0.0)
    return bool(np.linalg.norm(one - other) <= _EQUAL * np.linalg.norm(one))
