"""How far outputs are apart: over all samples, and in each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

# Where the reference is all zeros there is no relative error.
ABSOLUTE_AT_ZERO = 1e-6
_THREE_DB = 10 ** (3 / 20)


# What an entry of a comparison is to a selection (`verify.selections`).
BEHIND, IN_FRONT_OF, SELECTED_BY = "behind", "in front of", "selected by"


@dataclass(frozen=True)
class Selected:
    """A selection at which the second model may select otherwise.

    Attributes:
        label: operator and node: `TopK 'topk_3'`.
        samples: on how many samples it does.
        of: how many there are.
    """

    label: str
    samples: int
    of: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"selection": self.label, "samples": self.samples, "of": self.of}


class Place(NamedTuple):
    """A sample, and its relative error.

    Attributes:
        sample: position of what the model was fed, from 0.
        row: position in that, where it is a batch.
    """

    sample: int
    row: int | None
    error: float

    def __str__(self) -> str:
        return f"sample {self.sample}" + ("" if self.row is None else f", row {self.row}")


@dataclass(frozen=True)
class OutputError:
    """The distance of one output.

    Attributes:
        relative: ‖difference‖ / ‖reference‖ of a float output over all samples; 0 where the
            reference is all zero and the difference at most 1e-6, infinite where it is larger or
            the two cannot be compared (another shape or type, NaN or Inf on one side); for any
            other type the share of differing elements.
        is_float: whether `relative` is a norm.
        is_broken: the second model gives NaN or Inf where the first gives a number.
        samples: the same of each sample by itself, None where the output was empty. One whose
            reference is all zero is set against the mean power of the others.
        rows: of each sample that is a batch the same of each row; empty for any other.
        role: where the models select otherwise: `behind` an output that was compared with the
            reference's selection in both, `in front of` a tensor that a selection goes by,
            `selected by` an output that holds nothing but what was selected, which is no measure.
        selection: the one that `role` speaks of.
    """

    name: str
    relative: float
    is_float: bool = True
    is_broken: bool = False
    samples: tuple[float | None, ...] = ()
    rows: tuple[tuple[float | None, ...], ...] = ()
    role: str = ""
    selection: str = ""

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise, 20·log10(1 / relative), in dB; None if not of floats."""
        return decibels(self.relative) if self.is_float else None

    @property
    def places(self) -> list[Place]:
        """Every sample that is not empty; of a batch, every row."""
        found = []
        for i, error in enumerate(self.samples):
            rows = self.rows[i] if self.rows else ()
            each = [Place(i, row, e) for row, e in enumerate(rows) if e is not None]
            found += each or ([Place(i, None, error)] if error is not None else [])
        return found

    @property
    def median(self) -> float:
        """Relative error of the sample in the middle, of two the worse; 0 where all are empty.

        One loud sample is most of `relative`: an image that was not divided by 255 among others
        that were. It is not most of the samples. Each row of a batch is one.
        """
        found = sorted(place.error for place in self.places)
        return found[len(found) // 2] if found else (0.0 if self.samples else self.relative)

    @property
    def worst_sample(self) -> Place | None:
        """The sample that is furthest off."""
        return max(self.places, key=lambda place: place.error, default=None)

    def __str__(self) -> str:
        """`logits: 31.2 dB SQNR`, or which share of elements differs.

        Where half of the samples are worse than that by more than 3 dB, with their median.
        """
        place = f"{self.name} {self.role} {self.selection}"
        name = place if self.role == IN_FRONT_OF else self.name
        if self.is_float:
            text = f"{name}: {decibels(self.relative):.1f} dB SQNR"
            hidden = self.median > self.relative * _THREE_DB
            return f"{text}, median {decibels(self.median):.1f}" if hidden else text
        return f"{name}: {self.relative:.2%} of elements differ"

    def to_dict(self) -> dict[str, Any]:
        """For reports; an SQNR that is infinite (no difference at all) or not of floats is null."""
        report: dict[str, Any] = {
            "relative_error": self.relative,
            "sqnr_db": _finite(self.sqnr_db),
        }
        if self.role:
            report[self.role.replace(" ", "_")] = self.selection
        worst = self.worst_sample
        if worst is not None:
            report["median_relative_error"] = self.median
            report["worst_sample"] = {"sample": worst.sample, "relative_error": worst.error}
            if worst.row is not None:
                report["worst_sample"]["row"] = worst.row
            if self.is_float:
                report["median_sqnr_db"] = _finite(decibels(self.median))
                report["worst_sample"]["sqnr_db"] = _finite(decibels(worst.error))
        return report


def decibels(relative: float) -> float:
    """20·log10(1 / relative): infinite for 0, minus infinite for infinity."""
    if relative == 0:
        return math.inf
    return 0.0 - 20.0 * math.log10(relative) if math.isfinite(relative) else -math.inf


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Comparison:
    """The distance of every output of two models.

    Attributes:
        outputs: in their order; then what stands in front of selections that differ.
        selections: those at which the second model selects otherwise; all, where there is no
            output of floats.
    """

    outputs: tuple[OutputError, ...]
    selections: tuple[Selected, ...] = ()

    @property
    def rated(self) -> tuple[OutputError, ...]:
        """Those whose error is a measure."""
        return tuple(output for output in self.outputs if output.role != SELECTED_BY)

    @property
    def worst(self) -> OutputError | None:
        """The output that is furthest off, among those whose error is a measure."""
        return max(self.rated or self.outputs, key=lambda o: o.relative, default=None)

    def is_within(self, tolerance: float) -> bool:
        """Whether float outputs are within `tolerance`, and all others identical."""
        return not self.beyond(tolerance)

    def beyond(self, tolerance: float) -> tuple[OutputError, ...]:
        """Float outputs that are farther off than `tolerance`, and others that differ at all."""
        limits = {True: tolerance, False: 0.0}
        return tuple(o for o in self.outputs if not o.relative <= limits[o.is_float])

    def in_front_of(self, beyond: Mapping[str, str]) -> Comparison:
        """With these tensors marked as what stands in front of nodes that cannot be run."""
        rows = (
            replace(row, role=IN_FRONT_OF, selection=beyond[row.name])
            if row.name in beyond and not row.role
            else row
            for row in self.outputs
        )
        return replace(self, outputs=tuple(rows))

    def to_dict(self) -> dict[str, Any]:
        """For reports: every output by its name."""
        return {output.name: output.to_dict() for output in self.outputs}


def compare_outputs(
    names: Sequence[str],
    expected: Sequence[Sequence[np.ndarray]],
    actual: Sequence[Sequence[np.ndarray]],
) -> Comparison:
    """Compares outputs, given as one list per sample.

    A float output's error is the norm of the difference over the norm of `expected`, over all
    samples at once and in each.
    """
    distances = [Distance(name) for name in names]
    for one, other in zip(expected, actual, strict=True):
        for distance, a, b in zip(distances, one, other, strict=True):
            distance.add(a, b)
    return Comparison(tuple(distance.result() for distance in distances))


@dataclass(frozen=True)
class _Sample:
    """What one sample adds: energies of a float output, else counts of elements."""

    noise: float
    signal: float
    size: int
    comparable: bool = True


@dataclass
class Distance:
    """Sums up over samples how far one output is off."""

    name: str
    is_float: bool = True
    broken: bool = False
    samples: list[_Sample] = field(default_factory=list)
    rows: list[list[_Sample]] = field(default_factory=list)

    def add(self, expected: np.ndarray, actual: np.ndarray, is_batch: bool = False) -> None:
        """Adds one sample's output; each row of a batch is a sample by itself as well."""
        a, b = np.asarray(expected), np.asarray(actual)
        self.is_float = a.dtype.kind == "f"
        self.samples.append(self._compared(a, b))
        pairs = zip(a, b, strict=True) if is_batch and a.shape == b.shape else ()
        self.rows.append([self._compared(np.asarray(x), np.asarray(y)) for x, y in pairs])

    def _compared(self, a: np.ndarray, b: np.ndarray) -> _Sample:
        if a.shape != b.shape or a.dtype != b.dtype:
            return _Sample(math.inf, 0.0, a.size, comparable=False)
        if not self.is_float:
            return _Sample(float(np.sum(a != b)), a.size, a.size)
        return self._energies(a, b)

    def _energies(self, a: np.ndarray, b: np.ndarray) -> _Sample:
        wide, other = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        self.broken |= bool((np.isfinite(wide) & ~np.isfinite(other)).any())
        if not np.isfinite(wide).all():
            # Masked logits are -inf on both sides, and 0/0 stays what it was: no difference.
            same = ~np.isfinite(wide) & ((wide == other) | (np.isnan(wide) & np.isnan(other)))
            wide, other = np.where(same, 0.0, wide), np.where(same, 0.0, other)
        with np.errstate(invalid="ignore"):
            difference = other - wide
        return _Sample(float(difference @ difference), float(wide @ wide), a.size)

    def result(self) -> OutputError:
        """The error over everything added, of each sample, and of each row of a batch."""
        signal = sum(s.signal for s in self.samples)
        power = signal / max(sum(s.size for s in self.samples), 1)
        errors = tuple(self._of_sample(s, power) for s in self.samples)
        rows = tuple(tuple(self._of_sample(r, power) for r in rows) for rows in self.rows)
        return OutputError(
            self.name,
            self._over_all(signal),
            self.is_float,
            self.broken,
            errors,
            rows if any(rows) else (),
        )

    def _over_all(self, signal: float) -> float:
        if not all(s.comparable for s in self.samples):
            return math.inf
        noise = sum(s.noise for s in self.samples)
        return _norm(noise, signal) if self.is_float else noise / max(signal, 1.0)

    def _of_sample(self, sample: _Sample, power: float) -> float | None:
        """Relative error of one sample, beside the mean power of an element of all of them."""
        if not sample.comparable:
            return math.inf
        if not sample.size:
            return None
        if not self.is_float:
            return sample.noise / sample.size
        return _norm(sample.noise, sample.signal or power * sample.size)


def _norm(noise: float, signal: float) -> float:
    if signal == 0:
        return 0.0 if math.sqrt(noise) <= ABSOLUTE_AT_ZERO else math.inf
    relative = math.sqrt(noise / signal)
    return relative if math.isfinite(relative) else math.inf
