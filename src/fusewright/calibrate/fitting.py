"""How an array becomes feeds: which axis holds samples, and does it fit the model's input?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fusewright.calibrate.arrays import ArraySource
from fusewright.errors import DataError
from fusewright.graph.session import TensorSpec

# A dynamic axis 0 is the batch unless its name says that it runs along a signal or a sequence
# (silero's and keras' names); then an array of the input's rank is one complete input.
_SEQUENCE_NAMES = ("seq", "time", "len", "frame", "step", "token")


@dataclass(frozen=True)
class Fitted:
    """One array laid out for one input.

    Attributes:
        spec: the input.
        source: the array.
        units: how many rows of axis 0 it holds, or complete inputs where `whole`.
        group: how many units make one feed.
        whole: a unit is a complete input; else a row, kept with a leading axis of 1.
        stacked: the array has one axis more than the input.
    """

    spec: TensorSpec
    source: ArraySource
    units: int
    group: int
    whole: bool
    stacked: bool

    @property
    def feeds(self) -> Fraction:
        """How many feeds the array fills."""
        return Fraction(self.units, self.group)

    def rows(self) -> Iterator[np.ndarray]:
        """The units in order, converted to the input's dtype and checked for NaN and Inf."""
        index = 0
        for block in self.source.blocks():
            for unit in self._cut(block):
                yield self._checked(unit, index)
                index += 1

    def _cut(self, block: np.ndarray) -> Iterator[np.ndarray]:
        if self.whole:
            yield from block if self.stacked else (block,)
            return
        for part in block if self.stacked else (block,):
            for k in range(part.shape[0]):
                yield part[k : k + 1]

    def _checked(self, unit: np.ndarray, index: int) -> np.ndarray:
        wanted = self.spec.dtype
        if unit.dtype.kind == "f" and not np.isfinite(unit).all():
            kind = "NaN" if np.isnan(unit).any() else "Inf"
            raise DataError(f"{self.source.where}: sample {index} holds {kind}")
        if unit.dtype == wanted:
            return unit
        with np.errstate(over="ignore", invalid="ignore"):
            unit = unit.astype(wanted)
        if wanted.kind == "f" and not np.isfinite(unit).all():
            raise DataError(f"{self.source.where}: sample {index} overflows {wanted}")
        return unit


def group_size(spec: TensorSpec) -> int:
    """Samples on axis 0 of one feed: what the model fixes, 1 where it fixes nothing."""
    if not spec.shape or _dynamic(spec.shape[0]):
        return 1
    return int(spec.shape[0] or 1)


def fit(source: ArraySource, spec: TensorSpec) -> Fitted:
    """Lays `source` out for `spec`.

    Rank R + 1 is a stack of complete inputs, rank R holds the batch on axis 0.

    Raises:
        DataError: wrong rank, static dimension or dtype.
    """
    _check_dtype(source, spec)
    rank, shape = len(source.shape), spec.shape
    if shape is None:
        return Fitted(spec, source, 1, 1, whole=True, stacked=False)
    if rank not in (len(shape), len(shape) + 1):
        hint = "; a batch axis is missing" if rank == len(shape) - 1 else ""
        raise DataError(
            f"{source.where}: shape {list(source.shape)} has rank {rank}, "
            f"input {spec.name!r} has rank {len(shape)} {_text(shape)}{hint}"
        )
    stacked = rank == len(shape) + 1
    lead = 1 if _cut_along_axis_0(shape, stacked) else 0
    actual = source.shape[1:] if stacked else source.shape
    first = 0 if stacked and shape and not _dynamic(shape[0]) else lead
    for axis in range(first, len(shape)):
        if not _dynamic(shape[axis]) and shape[axis] != actual[axis]:
            raise DataError(
                f"{source.where}: shape {list(source.shape)} does not fit input {spec.name!r} "
                f"{_text(shape)}: axis {axis} is {actual[axis]}, not {shape[axis]}"
            )
    if not lead:
        units = source.shape[0] if stacked else 1
        return Fitted(spec, source, units, 1, whole=True, stacked=stacked)
    units = source.shape[0] * source.shape[1] if stacked else source.shape[0]
    return Fitted(spec, source, units, group_size(spec), whole=False, stacked=stacked)


def _cut_along_axis_0(shape: Sequence[int | str | None], stacked: bool) -> bool:
    if not shape:
        return False
    first = shape[0]
    if isinstance(first, str) and any(word in first.lower() for word in _SEQUENCE_NAMES):
        return False
    # A stack for a vector of open length: rows of a signal, not single numbers.
    return not (stacked and len(shape) == 1 and _dynamic(first))


def _dynamic(dim: int | str | None) -> bool:
    return not isinstance(dim, int) or dim < 1


def _check_dtype(source: ArraySource, spec: TensorSpec) -> None:
    have, want = source.dtype, spec.dtype
    if have.newbyteorder("=") == want or (have.kind == "f" and want.kind == "f"):
        return
    if have.kind in "iu" and want.kind in "iu" and np.can_cast(have, want, "safe"):
        return
    if have.kind == "U" and want.kind in "OU":
        return
    raise DataError(
        f"{source.where}: dtype {have} does not convert exactly to {want} of input {spec.name!r}"
    )


def _text(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
