"""How far two models' outputs are apart on the same samples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from fusewright.errors import DataError
from fusewright.graph.session import Feed, open_session, run_session

# Where the reference is all zeros there is no relative error.
ABSOLUTE_AT_ZERO = 1e-6
_IN_MEMORY = 1 << 30


@dataclass(frozen=True)
class OutputError:
    """The distance of one output over all samples.

    Attributes:
        relative: ‖difference‖ / ‖reference‖ of a float output; 0 where the reference is all zero
            and the difference at most 1e-6; for any other type the share of differing elements.
        is_float: whether `relative` is a norm.
    """

    name: str
    relative: float
    is_float: bool = True

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, 20·log10(1 / relative), in dB."""
        if self.relative == 0:
            return math.inf
        return -20.0 * math.log10(self.relative) if math.isfinite(self.relative) else -math.inf


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
        """For reports; an infinite SQNR (no difference at all) is null."""
        return {
            o.name: {
                "relative_error": o.relative,
                "sqnr_db": o.sqnr_db if math.isfinite(o.sqnr_db) else None,
            }
            for o in self.outputs
        }


class Reference:
    """What the original computes on a few samples; rewrites are compared with it."""

    def __init__(self, model: onnx.ModelProto | Path, feeds: Sequence[Feed]) -> None:
        """Runs `model`, optimizations off, once.

        Raises:
            DataError: there is no sample.
        """
        if not feeds:
            raise DataError("no sample to verify with")
        self.feeds = list(feeds)
        self.names, self.outputs = _run_all(model, self.feeds)

    def compare(self, model: onnx.ModelProto | Path) -> Comparison:
        """Runs a rewritten model on the same samples.

        Raises:
            ModelError: onnxruntime cannot load it.
        """
        _, outputs = _run_all(model, self.feeds, self.names)
        return compare_outputs(self.names, self.outputs, outputs)


def compare_outputs(
    names: Sequence[str],
    expected: Sequence[Sequence[np.ndarray]],
    actual: Sequence[Sequence[np.ndarray]],
) -> Comparison:
    """Compares outputs, given as one list per sample.

    A float output's error is the norm of the difference over the norm of `expected`, over all
    samples at once.
    """
    columns = zip(names, zip(*expected, strict=True), zip(*actual, strict=True), strict=True)
    return Comparison(tuple(_distance(name, a, b) for name, a, b in columns))


def _distance(
    name: str, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]
) -> OutputError:
    is_float = isinstance(expected[0], np.ndarray) and expected[0].dtype.kind == "f"
    if any(np.shape(a) != np.shape(b) for a, b in zip(expected, actual, strict=True)):
        return OutputError(name, math.inf, is_float)
    if not is_float:
        total = sum(np.size(a) for a in expected)
        wrong = sum(
            int(np.sum(np.asarray(a) != np.asarray(b)))
            for a, b in zip(expected, actual, strict=True)
        )
        return OutputError(name, wrong / max(total, 1), is_float=False)
    noise = signal = 0.0
    for a, b in zip(expected, actual, strict=True):
        wide, difference = a.astype(np.float64), b.astype(np.float64) - a.astype(np.float64)
        # Masked logits are -inf on both sides, and 0/0 stays what it was: no difference.
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        noise += float(np.sum(np.square(np.where(same, 0.0, difference))))
        signal += float(np.sum(np.square(wide[np.isfinite(wide)])))
    if signal == 0:
        return OutputError(name, 0.0 if math.sqrt(noise) <= ABSOLUTE_AT_ZERO else math.inf)
    relative = math.sqrt(noise / signal)
    return OutputError(name, relative if math.isfinite(relative) else math.inf)


def _run_all(
    model: onnx.ModelProto | Path, feeds: Sequence[Feed], names: Sequence[str] | None = None
) -> tuple[list[str], list[list[np.ndarray]]]:
    session = _open(model)
    wanted = list(names) if names is not None else [o.name for o in session.get_outputs()]
    return wanted, [run_session(session, feed, wanted) for feed in feeds]


def _open(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    if isinstance(model, Path):
        return open_session(model)
    if model.ByteSize() < _IN_MEMORY:
        return open_session(model.SerializeToString())
    with tempfile.TemporaryDirectory(prefix="fusewright-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, str(path), save_as_external_data=True, location="model.weights")
        return open_session(path)
