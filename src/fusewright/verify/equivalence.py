"""How far two models' outputs are apart on the same samples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from fusewright.errors import DataError, ModelError
from fusewright.graph.clean import open_folded
from fusewright.graph.light import stored_bytes
from fusewright.graph.session import Feed, naming, open_session, run_session
from fusewright.verify.outputs import with_float_outputs
from fusewright.verify.weights import with_computed_weights

# Where the reference is all zeros there is no relative error.
ABSOLUTE_AT_ZERO = 1e-6
_IN_ONE_FILE = 1 << 30


@dataclass(frozen=True)
class OutputError:
    """The distance of one output over all samples.

    Attributes:
        relative: ‖difference‖ / ‖reference‖ of a float output; 0 where the reference is all zero
            and the difference at most 1e-6, infinite where it is larger or the two cannot be
            compared (another shape or type, NaN or Inf on one side); for any other type the share
            of differing elements.
        is_float: whether `relative` is a norm.
        is_broken: the second model gives NaN or Inf where the first gives a number.
    """

    name: str
    relative: float
    is_float: bool = True
    is_broken: bool = False

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise, 20·log10(1 / relative), in dB; None if not of floats."""
        if not self.is_float:
            return None
        if self.relative == 0:
            return math.inf
        return -20.0 * math.log10(self.relative) if math.isfinite(self.relative) else -math.inf

    def __str__(self) -> str:
        """`logits: 31.2 dB SQNR`, or which share of elements differs."""
        if self.sqnr_db is not None:
            return f"{self.name}: {self.sqnr_db:.1f} dB SQNR"
        return f"{self.name}: {self.relative:.2%} of elements differ"


@dataclass(frozen=True)
class Comparison:
    """The distance of every output of two models."""

    outputs: tuple[OutputError, ...]

    @property
    def worst(self) -> OutputError | None:
        """The output that is furthest off."""
        return max(self.outputs, key=lambda o: o.relative, default=None)

    def is_within(self, tolerance: float) -> bool:
        """Whether float outputs are within `tolerance`, and all others identical."""
        return all(o.relative <= (tolerance if o.is_float else 0.0) for o in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """For reports; an SQNR that is infinite (no difference at all) or not of floats is null."""
        return {
            o.name: {
                "relative_error": o.relative,
                "sqnr_db": o.sqnr_db if math.isfinite(o.sqnr_db or 0.0) else None,
            }
            for o in self.outputs
        }


class Reference:
    """What the original computes on a few samples; rewrites are compared with it."""

    def __init__(
        self, model: onnx.ModelProto | Path, feeds: Sequence[Feed], folder: Path | None = None
    ) -> None:
        """Runs `model`, optimizations off, once.

        `folder` holds the weights that models refer to.

        Raises:
            DataError: there is no sample.
        """
        if not feeds:
            raise DataError("no sample to verify with")
        self.feeds, self.folder = list(feeds), folder
        original = model if isinstance(model, Path) else with_float_outputs(model)
        self._in_float = original is not model
        session = _open(original, folder)
        self.names = [output.name for output in session.get_outputs()]
        self.outputs = [run_session(session, feed, self.names) for feed in self.feeds]

    def compare(self, model: onnx.ModelProto | Path, is_final: bool = False) -> Comparison:
        """Runs a rewritten model on the same samples.

        Args:
            model: with the interface of the original.
            is_final: it is meant to differ, and what depends on stored tensors alone is computed
                once, not in every run: the weights behind Q/DQ pairs.

        Raises:
            ModelError: onnxruntime cannot load it, or it fails on samples that the original takes.
        """
        return self.compare_and_fetch(model, (), is_final)[0]

    def compare_and_fetch(
        self, model: onnx.ModelProto | Path, also: Sequence[str], is_final: bool = True
    ) -> tuple[Comparison, list[list[np.ndarray]]]:
        """`compare`, and the values of further outputs on each sample, from the same runs.

        Raises:
            ModelError: as `compare`.
        """
        names, count = [*self.names, *also], len(self.names)
        try:
            if self._in_float and not isinstance(model, Path):
                model = with_float_outputs(model)
            session = _open(model, self.folder, is_final)
            outputs = [run_session(session, feed, names) for feed in self.feeds]
        except DataError as error:
            raise ModelError(
                f"the original runs on the samples, this model not: {error}"
            ) from error
        comparison = compare_outputs(self.names, self.outputs, [o[:count] for o in outputs])
        return comparison, [o[count:] for o in outputs]


def compare_outputs(
    names: Sequence[str],
    expected: Sequence[Sequence[np.ndarray]],
    actual: Sequence[Sequence[np.ndarray]],
) -> Comparison:
    """Compares outputs, given as one list per sample.

    A float output's error is the norm of the difference over the norm of `expected`, over all
    samples at once.
    """
    distances = [_Distance(name) for name in names]
    for one, other in zip(expected, actual, strict=True):
        for distance, a, b in zip(distances, one, other, strict=True):
            distance.add(a, b)
    return Comparison(tuple(distance.result() for distance in distances))


def compare_models(
    first: onnx.ModelProto | Path,
    second: onnx.ModelProto | Path,
    feeds: Iterable[Feed],
    folder: Path | None = None,
) -> tuple[Comparison, int]:
    """Runs two models on the same samples, one sample in memory; also says how many there were.

    Args:
        first: the reference.
        second: the model to judge.
        feeds: the samples.
        folder: where weights lie that `second` refers to, where it is no path.

    Raises:
        ModelError: their outputs differ in name, or one cannot be loaded.
        DataError: there are no samples, or a model fails on one.
    """
    one, other = _open(first), _open(second, folder)
    names = [output.name for output in one.get_outputs()]
    if names != [output.name for output in other.get_outputs()]:
        raise ModelError("the two models have different outputs")
    distances, count = [_Distance(name) for name in names], 0
    for feed in feeds:
        count += 1
        for distance, a, b in zip(
            distances, run_session(one, feed), run_session(other, feed), strict=True
        ):
            distance.add(a, b)
    if not count:
        raise DataError("no sample to compare with")
    return Comparison(tuple(distance.result() for distance in distances)), count


@dataclass
class _Distance:
    """Sums up over samples how far one output is off."""

    name: str
    noise: float = 0.0
    signal: float = 0.0
    wrong: int = 0
    total: int = 0
    is_float: bool = True
    comparable: bool = True
    broken: bool = False

    def add(self, expected: np.ndarray, actual: np.ndarray) -> None:
        """Adds one sample's output."""
        a, b = np.asarray(expected), np.asarray(actual)
        self.is_float = a.dtype.kind == "f"
        if a.shape != b.shape or a.dtype != b.dtype:
            self.comparable = False
        elif not self.is_float:
            self.wrong += int(np.sum(a != b))
            self.total += a.size
        else:
            wide, other = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
            self.broken |= bool((np.isfinite(wide) & ~np.isfinite(other)).any())
            if not np.isfinite(wide).all():
                # Masked logits are -inf on both sides, and 0/0 stays what it was: no difference.
                same = ~np.isfinite(wide) & ((wide == other) | (np.isnan(wide) & np.isnan(other)))
                wide, other = np.where(same, 0.0, wide), np.where(same, 0.0, other)
            with np.errstate(invalid="ignore"):
                difference = other - wide
            self.noise += float(difference @ difference)
            self.signal += float(wide @ wide)

    def result(self) -> OutputError:
        """The error over everything added."""
        if not self.comparable:
            return OutputError(self.name, math.inf, self.is_float)
        if not self.is_float:
            return OutputError(self.name, self.wrong / max(self.total, 1), is_float=False)
        if self.signal == 0:
            equal = math.sqrt(self.noise) <= ABSOLUTE_AT_ZERO
            return self._of(0.0 if equal else math.inf)
        relative = math.sqrt(self.noise / self.signal)
        return self._of(relative if math.isfinite(relative) else math.inf)

    def _of(self, relative: float) -> OutputError:
        return OutputError(self.name, relative, is_broken=self.broken)


def _open(
    model: onnx.ModelProto | Path, folder: Path | None = None, is_final: bool = False
) -> ort.InferenceSession:
    if isinstance(model, Path):
        with naming(model):
            return open_session(model)
    # Through a file: from bytes, the weights would be in memory twice more while it loads. Beside
    # the weights it refers to: onnxruntime maps them, and copies nothing.
    with tempfile.TemporaryDirectory(prefix="verify-") as own:
        path = (folder or Path(own)) / f"{Path(own).name}.onnx"
        weights = path.with_suffix(".weights")
        try:
            if is_final:
                model = with_computed_weights(model, path.parent, weights)
            if stored_bytes(model) < _IN_ONE_FILE:
                path.write_bytes(model.SerializeToString())
            else:
                onnx.save(model, str(path), save_as_external_data=True, location=f"{path.stem}.all")
            return open_folded(path) if is_final else open_session(path)
        finally:
            path.unlink(missing_ok=True)
            weights.unlink(missing_ok=True)
