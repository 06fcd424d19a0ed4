"""Proof after each stage, and what is done where it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import onnx

from fusewright.errors import DataError, ModelError, VerifyError
from fusewright.pipeline.trace import Trace
from fusewright.verify import Comparison, Reference, compare_by_regions
from fusewright.verify.distance import BEHIND

# Float32 arithmetic in another order; an error of meaning is orders of magnitude larger.
TOLERANCE = 1e-5


class RewriteError(ModelError):
    """The rewrites that were taken for right change the results, or do not run."""


# Nodes from which on a session over the whole takes longer than all stages together.
WHOLE_UP_TO = 15_000


@dataclass
class Proof:
    """Compares what a stage made with the original, and keeps the results.

    Attributes:
        start: runs the original on the first samples; called when it is first needed.
        strict: a failed proof is an error.
        regions_in: set where the graph is too large to run whole: each stage is then proven
            against the one before it, region by region, with the weights that lie in this folder.
        results: comparison by stage.
        deferred: take every rewrite for right until `settle` proves them all at once.
    """

    start: Callable[[], Reference]
    trace: Trace
    strict: bool = False
    regions_in: Path | None = None
    results: dict[str, Comparison] = field(default_factory=dict)
    deferred: bool = False
    _waiting: list[int] = field(default_factory=list)

    @property
    def by_regions(self) -> bool:
        """Whether stages are proven region by region."""
        return self.regions_in is not None

    @cached_property
    def reference(self) -> Reference:
        """What the original computes on the first samples."""
        return self.start()

    def holds(
        self, stage: str, before: onnx.ModelProto, after: onnx.ModelProto, name: str = ""
    ) -> bool:
        """Whether `after` computes what the original (and `before`) does, within `TOLERANCE`."""
        if self.deferred:
            self.trace.add(stage, "proof", name, detail="deferred")
            self._waiting.append(len(self.trace.events) - 1)
            return True
        label = f"{stage} {name}".strip()
        try:
            if self.regions_in is not None:
                comparison = compare_by_regions(before, after, self.regions_in)
            else:
                comparison = self.compared(after)
        except (DataError, ModelError) as error:
            self.trace.add(stage, "proof", name, detail=f"failed: {error}")
            return False
        within = self._is_within(comparison)
        self.trace.add(stage, "proof", name, detail=_verdict(comparison, within))
        if within:
            self.results[label] = comparison
        return within

    def compared(self, model: onnx.ModelProto) -> Comparison:
        """How far a rewritten model is from the original.

        Where the results differ, selections may be behind it that go by near ties (the TopK of
        RT-DETR: 300 of 8,400 scores): then in front of them, and behind with the same selected.

        Raises:
            ModelError: the model does not run.
        """
        comparison = self.reference.compare(model)
        if self._is_within(comparison):
            return comparison
        alike = self.reference.compare_selecting_alike(model)
        return comparison if alike is None or not alike.is_within(TOLERANCE) else alike

    def _is_within(self, comparison: Comparison) -> bool:
        """Whether the results are the same, but for rounding."""
        if comparison.is_within(TOLERANCE):
            return True
        return not self.by_regions and self.reference.is_rounding(comparison, TOLERANCE)

    def by_stage(self) -> None:
        """From here on nothing is deferred, and what was is forgotten."""
        self.deferred = False
        self._waiting.clear()
        self.results.clear()

    @contextmanager
    def blaming(self, model: Callable[[], onnx.ModelProto]) -> Iterator[None]:
        """Finds out whether what was deferred is behind an error of the block.

        Args:
            model: the last of it; called where there is an error.

        Raises:
            RewriteError: it is: `model` does not run, or is too far from the original. Any other
                error goes through, with what was deferred proven.
        """
        try:
            yield
        except RewriteError:
            raise
        except (DataError, ModelError, VerifyError):
            if self.deferred:
                _ = self.reference  # raises where it was the original that failed
                self.settle(lambda: self.compared(model()))
            raise

    def settle(self, compare: Callable[[], Comparison]) -> None:
        """Proves what was deferred, by how far the last of it is from the original.

        Raises:
            RewriteError: it does not run, or is too far.
        """
        try:
            comparison = compare()
        except ModelError as error:
            raise RewriteError(f"the rewrites together: {error}") from error
        within = self._is_within(comparison)
        for index in self._waiting:
            event = self.trace.events[index]
            self.trace.events[index] = replace(event, detail=_verdict(comparison, within))
            self.results[f"{event.stage} {event.name}".strip()] = comparison
        if not within:
            what = _verdict(comparison, within)
            raise RewriteError(f"the rewrites together change the results: {what}")
        self._waiting.clear()
        self.deferred = False

    def measure(self, stage: str, comparison: Comparison, half: str = "") -> None:
        """Keeps the distance of a model that is meant to differ.

        An output may have another shape than before (detections that pass a threshold) or be zero
        where the original is; it may not be NaN or Inf where the original is a number.

        Args:
            half: title of the type that the user asked for outputs in; empty where it is theirs.

        Raises:
            VerifyError: an output holds such NaN or Inf.
        """
        for output in comparison.outputs:
            if output.is_broken:
                why = half and f" in {half}, which --io-types asks for"
                raise VerifyError(f"{stage}: output '{output.name}' is no longer finite{why}")
        worst = comparison.worst
        if worst is not None:
            self.trace.add(stage, "proof", detail=str(worst))
        self.results[stage] = comparison

    def undo(self, stage: str, name: str, detail: str) -> None:
        """Records that a rewrite was taken back.

        Raises:
            VerifyError: strict proof was asked for.
        """
        self.trace.add(stage, "undone", name, detail=detail)
        if self.strict:
            raise VerifyError(f"{stage}: {name} changes the model's results ({detail}); --strict")


def _verdict(comparison: Comparison, within: bool) -> str:
    worst = comparison.worst
    text = "no outputs" if worst is None else f"{worst.name}: {worst.relative:.1e}"
    alike = any(row.role == BEHIND for row in comparison.outputs)
    text += ", on what the original selects" if alike else ""
    if within and not comparison.is_within(TOLERANCE):
        text += ", as far as the last bits of its weights move it"
    return f"{'holds' if within else 'failed'}, {text}"
