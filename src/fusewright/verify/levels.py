"""A result opened as its users open it: with onnxruntime's optimizations on.

Proofs and measures run with optimizations off. What the optimizer makes of a file is another
matter, and its faults look like ours: they are told, with what to do about them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from fusewright.errors import DataError, ModelError
from fusewright.graph.session import Feed, open_session, run_session, session_options
from fusewright.verify.distance import Comparison, OutputError, compare_outputs, decibels
from fusewright.verify.equivalence import Reference

DEFAULT = "ORT_ENABLE_ALL"
LEVELS = (DEFAULT, "ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC")
"""onnxruntime's levels that change a graph, its default first."""
_OFF = "ORT_DISABLE_ALL"
# Those that touch Q/DQ pairs, or what reads them.
_SUSPECTS = (
    "WeightBiasQuantization",
    "QDQSelectorActionTransformer",
    "QDQPropagationTransformer",
    "QDQS8ToU8Transformer",
    "ReluQuantRewrite",
    "ClipQuantRewrite",
    "MatMulAddFusion",
    "ConstantFolding",
)
# Roundings fall otherwise at each level, as far from the original; what is wrong is farther.
_AS_FAR = 2.0
_NEAR = 1e-3


@dataclass(frozen=True)
class Opened:
    """What a level made of a file: how far from the original it is, or why it does not run."""

    level: str
    comparison: Comparison | None
    refusal: str = ""


@dataclass(frozen=True)
class LevelCheck:
    """A file, and what the original gives on samples."""

    model: Path
    reference: Reference

    def open(self, levels: Sequence[str]) -> list[Opened]:
        """Runs the file on the first sample at each of some `LEVELS`."""
        return [self._at(level, 1) for level in levels]

    def notes(self, opened: Sequence[Opened], measured: Comparison) -> list[str]:
        """What a user of these levels has to know, one line for each cause.

        Args:
            opened: by `open`.
            measured: how far the file is from the original, on all samples.
        """
        doubtful = [found for found in opened if not _is_near(found.comparison, measured)]
        if not doubtful:
            return []
        plain = self._at(_OFF, None)
        if plain.comparison is None:
            return [f"onnxruntime cannot run the result at any level: {plain.refusal}"]
        named = {output.name for output in measured.outputs if not output.role}
        right = Comparison(tuple(o for o in plain.comparison.outputs if o.name in named))
        causes: dict[str | None, list[Opened]] = {}
        for level in (found.level for found in doubtful):
            found = self._at(level, None)
            if not _is_near(found.comparison, right):
                causes.setdefault(self._cause(level, right), []).append(found)
        return [_note(cause, found, right) for cause, found in causes.items()]

    def _cause(self, level: str, plain: Comparison) -> str | None:
        """The optimizer without which the level gives what no optimization gives."""
        tried = ((name, self._at(level, None, (name,))) for name in _SUSPECTS)
        return next((name for name, found in tried if _is_near(found.comparison, plain)), None)

    def _at(self, level: str, count: int | None, left_out: Sequence[str] = ()) -> Opened:
        options = session_options()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        # It runs once, beside other work: threads wait for each other, and an arena only grows
        # (swin_t: 0.20 in place of 0.26 s of CPU).
        options.intra_op_num_threads, options.enable_cpu_mem_arena = 1, False
        names, expected = self.reference.names, self.reference.outputs[:count]
        try:
            session = open_session(self.model, options=options, left_out=left_out)
            given = [_fed(session, feed) for feed in self.reference.feeds[:count]]
            results = [run_session(session, feed, names) for feed in given]
        except (ModelError, DataError) as error:
            return Opened(level, None, str(error))
        actual = [list(_typed(a, b)) for a, b in zip(expected, results, strict=True)]
        return Opened(level, compare_outputs(names, expected, actual))


def _fed(session: ort.InferenceSession, feed: Feed) -> Feed:
    """The samples, in half where the result's inputs are."""
    half = {i.name for i in session.get_inputs() if i.type == "tensor(float16)"}
    return {n: a.astype(np.float16) if n in half else a for n, a in feed.items()}


def _typed(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Results in the reference's types: an output in half is compared as a number."""
    for one, other in zip(expected, actual, strict=True):
        floats = one.dtype.kind == other.dtype.kind == "f"
        yield other.astype(one.dtype) if floats else other


def _is_near(found: Comparison | None, measured: Comparison) -> bool:
    if found is None:
        return False
    # What lies behind a selection was measured with that of the original.
    known = {output.name: output for output in measured.outputs if not output.role}
    pairs = [(one, known[one.name]) for one in found.outputs if one.name in known]
    return not any(_is_farther(one, other) for one, other in pairs)


def _is_farther(one: OutputError, other: OutputError) -> bool:
    """Whether a float output is; one of another size, as behind an NMS, is not compared."""
    if not one.is_float or (math.isinf(one.relative) and not one.is_broken):
        return False
    worst = max(other.relative, *(error or 0.0 for error in other.samples), _NEAR)
    return one.relative > _AS_FAR * worst


def _note(cause: str | None, found: Sequence[Opened], plain: Comparison) -> str:
    levels = " and ".join(one.level for one in found)
    told = f"{levels}, its default," if found[0].level == DEFAULT and len(found) == 1 else levels
    comparison = found[0].comparison
    if comparison is None:
        what = f"does not run the result ({found[0].refusal})"
    else:
        given = {output.name: output for output in comparison.outputs}
        pairs = ((given[output.name], output) for output in plain.outputs)
        one, other = next(pair for pair in pairs if _is_farther(*pair))
        what = (
            f"gives {decibels(one.relative):.1f} dB at output '{one.name}' where it gives"
            f" {decibels(other.relative):.1f} without optimizations"
        )
    help_ = (
        f"its {cause} does it: check with disabled_optimizers=['{cause}']"
        if cause is not None
        else f"check with graph_optimization_level {_OFF}"
    )
    return f"onnxruntime at {told} {what}; {help_} (TensorRT is not concerned)"
