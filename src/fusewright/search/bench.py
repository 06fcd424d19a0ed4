"""Builds and compares placements, each once: what the journal knows is not done again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Protocol

from fusewright.errors import EngineError
from fusewright.plan.plan import Plan
from fusewright.quantize.placement import Placement
from fusewright.search.journal import Journal
from fusewright.search.judge import Figures, Judge
from fusewright.search.result import Outcome
from fusewright.search.variant import Baseline, Variant
from fusewright.verify import Comparison


class Made(Protocol):
    """A model with its pairs and types, as it would be written."""

    @property
    def path(self) -> Path:
        """Where it lies, for the builder."""

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

    def outcome(
        self, variant: Variant, is_worth: Callable[[Figures], bool] = lambda found: True
    ) -> Outcome:
        """Builds a variant, and compares it where its figures are worth it.

        Raises:
            Spent: it is not known, and the budget is spent.
            EngineError: it does not build.
            ModelError: onnxruntime does not run it.
        """
        placement = self.baseline.set(self._plan, variant)
        key = "\n".join(placement.lines())
        with ExitStack() as stack:
            made = _Once(lambda: stack.enter_context(self._workshop.make(placement)))
            figures = self._figures(key, made)
            if not is_worth(figures):
                return Outcome(variant, figures)
            known = self._journal.get(key) or {}
            if "error" not in known:
                error, accuracy = _measured(made().compare())
                self._journal.put(key, error=error, accuracy=accuracy)
                known = {"error": error, "accuracy": accuracy}
            return Outcome(variant, figures, known["error"], known["accuracy"])

    def _figures(self, key: str, made: Callable[[], Made]) -> Figures:
        known = self._journal.get(key) or {}
        if "failed" in known:
            raise EngineError(known["failed"])
        if "figures" in known:
            return Figures.from_dict(known["figures"])
        if self.spent >= self.budget:
            raise Spent
        path = made().path
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
