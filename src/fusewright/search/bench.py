"""Builds and compares placements, each once: what the journal knows is not done again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import onnx

from fusewright.errors import EngineError
from fusewright.plan.plan import Plan
from fusewright.quantize.placement import Placement
from fusewright.search.cut import Flat, Part, known_shapes
from fusewright.search.journal import Journal
from fusewright.search.judge import Figures, Judge
from fusewright.search.regions import Regions
from fusewright.search.result import Outcome
from fusewright.search.variant import Baseline, Variant
from fusewright.verify import Comparison

# Of the nodes of a model: parts of more are built no faster than the whole.
_LARGEST_PARTS = 0.5


class Made(Protocol):
    """A model with its pairs and types, as it would be written."""

    @property
    def path(self) -> Path:
        """Where it lies, for the builder."""

    @property
    def flat(self) -> onnx.ModelProto:
        """The same without local functions, its inputs of the sizes that it is built for."""

    def write(self, part: onnx.ModelProto) -> Path:
        """Writes a part of `flat`, for the builder; the last one is gone."""

    def compare(self) -> Comparison:
        """How far it is from the original."""


class Workshop(Protocol):
    """Makes the model of a placement."""

    def make(self, placement: Placement) -> AbstractContextManager[Made]:
        """The plan's model with these pairs; its file is gone after the block."""


class Spent(Exception):
    """The builder has had its time."""


class Bench:
    """One plan, set to one variant after another.

    Attributes:
        baseline: what the rules decided.
        spent: seconds that the judge took.
        budget: how many it may take; the build under way ends.
    """

    def __init__(
        self,
        plan: Plan,
        workshop: Workshop,
        judge: Judge,
        journal: Journal,
    ) -> None:
        """The budget is without end until it is set; the plan is taken as the rules' own."""
        self._plan, self._workshop, self._judge, self._journal = plan, workshop, judge, journal
        self.baseline = Baseline.of(plan)
        self.spent, self.budget = 0.0, math.inf
        self._start: tuple[Figures, Flat] | None = None

    def start(self) -> Outcome:
        """Builds and compares what the rules decided; parts of others are held against it.

        Raises:
            EngineError: it does not build.
            ModelError: onnxruntime does not run it.
        """
        outcome = self.outcome(Variant())
        if self._judge.adds_up:
            with self._workshop.make(self.baseline.set(self._plan)) as made:
                self._start = outcome.figures, Flat(made.flat, known_shapes(made.flat))
        return outcome

    def outcome(
        self,
        variant: Variant,
        is_worth: Callable[[Figures], bool] = lambda found: True,
        around: Sequence[str] = (),
    ) -> Outcome:
        """Builds a variant, and compares it where its figures are worth it.

        Args:
            variant: what is changed.
            is_worth: whether to compare what has these figures.
            around: groups that it changes: where the judge's figures add up, they are those of the
                rules with what building the parts around these groups shows.

        Raises:
            Spent: it is not known, and the budget is spent.
            EngineError: it does not build.
            ModelError: onnxruntime does not run it.
        """
        placement = self.baseline.set(self._plan, variant)
        key = "\n".join(placement.lines())
        with ExitStack() as stack:
            made = _Once(lambda: stack.enter_context(self._workshop.make(placement)))
            figures = None
            if around and self._judge.adds_up:
                figures = self._by_parts(f"by parts\n{key}", around, made)
            if figures is None:
                figures = self._figures(key, lambda: made().path)
            if not is_worth(figures):
                return Outcome(variant, figures)
            known = self._journal.get(key) or {}
            if "error" not in known:
                error, accuracy = _measured(made().compare())
                self._journal.put(key, error=error, accuracy=accuracy)
                known = {"error": error, "accuracy": accuracy}
            return Outcome(variant, figures, known["error"], known["accuracy"])

    def _by_parts(
        self, key: str, around: Sequence[str], made: Callable[[], Made]
    ) -> Figures | None:
        known = self._journal.get(key)
        if known is not None:
            return None if known["figures"] is None else Figures.from_dict(known["figures"])
        found = self._from_parts(around, made)
        self._journal.put(key, figures=None if found is None else found.to_dict())
        return found

    def _from_parts(self, around: Sequence[str], made: Callable[[], Made]) -> Figures | None:
        """The rules' figures with what the parts around these groups show; None where they are no
        part, or cannot be built alone.
        """
        assert self._start is not None
        start, flat = self._start
        decided = self.baseline.decided
        changed = {g.name for g in self._plan.groups if g.decision != decided[g.name].decision}
        parts = self._regions.around({*around, *changed})
        before = [flat.part(names) for names in parts]
        sizes = {p.structure: len(p.model.graph.node) for p in before if p is not None}
        if None in before or sum(sizes.values()) > _LARGEST_PARTS * len(flat.proto.graph.node):
            return None
        after = Flat(made().flat, flat.shapes)
        figures = replace(start, seconds=0.0, findings=(), by_parts=True)
        for names, old in zip(parts, before, strict=True):
            new = after.part(names)
            if new is None or old is None:
                return None
            try:
                figures = figures.with_part(self._of_part(old, made()), self._of_part(new, made()))
            except EngineError:
                return None
        return figures

    def _of_part(self, part: Part, made: Made) -> Figures:
        key = f"part {part.structure}"
        return self._figures(key, lambda: made.write(part.model))

    @cached_property
    def _regions(self) -> Regions:
        return Regions(self._plan)

    def _figures(self, key: str, model: Callable[[], Path]) -> Figures:
        known = self._journal.get(key) or {}
        if "failed" in known:
            raise EngineError(known["failed"])
        if "figures" in known:
            return Figures.from_dict(known["figures"])
        if self.spent >= self.budget:
            raise Spent
        path = model()
        begun = time.perf_counter()
        try:
            figures = self._judge.figures(path)
        except EngineError as error:
            self._journal.put(key, failed=str(error))
            raise
        finally:
            self.spent += time.perf_counter() - begun
        self._journal.put(key, figures=figures.to_dict())
        return figures


class _Once:
    """Calls a function when it is first needed, and keeps what it gave."""

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._made: Made | None = None

    def __call__(self) -> Made:
        if self._made is None:
            self._made = self._make()
        return self._made


def _measured(comparison: Comparison) -> tuple[float, str]:
    """The relative error of the worst output, infinite where one is broken; and in words."""
    worst = comparison.worst
    if any(output.is_broken for output in comparison.outputs):
        return math.inf, "an output is no longer finite"
    if worst is None:
        return 0.0, "no outputs"
    decibels = worst.sqnr_db
    return worst.relative, str(worst) if decibels is None else f"{decibels:.2f} dB SQNR"
