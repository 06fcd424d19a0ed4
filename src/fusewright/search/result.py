"""What a search found: every trial, what was kept, and what is still in the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fusewright.engine.advice import ADVICE
from fusewright.engine.report import Finding
from fusewright.quantize.placement import Placement
from fusewright.search.judge import Figures
from fusewright.search.variant import Variant

# Verdicts.
TAKEN, LEFT, REJECTED, FAILED, UNTRIED = "taken", "left", "rejected", "failed", "not tried"


@dataclass(frozen=True)
class Outcome:
    """A placement that was built.

    Attributes:
        error: of the worst output against the original, ‖difference‖ / ‖reference‖; None where
            it was not measured.
        accuracy: the same in words.
    """

    variant: Variant
    figures: Figures
    error: float | None = None
    accuracy: str = ""

    def __str__(self) -> str:
        """`131 kernels, 139.04 MB, logits: 34.8 dB SQNR`."""
        return f"{self.figures}, {self.accuracy}" if self.accuracy else str(self.figures)


@dataclass(frozen=True)
class Trial:
    """One choice tried alone on the rules' placement, or several together.

    Attributes:
        choice: its name.
        verdict: `taken`; `left` (tried, and not taken); `rejected` (several together that did not
            hold what each had promised); `failed`; or `not tried`.
        detail: why, in words.
        outcome: what became of it; None where there is nothing.
    """

    choice: str
    verdict: str
    detail: str = ""
    outcome: Outcome | None = None

    def __str__(self) -> str:
        """One line of the note."""
        text = f"{self.verdict}: {self.choice}"
        if self.outcome is not None:
            text += f": {self.outcome}"
        return text + (f" ({self.detail})" if self.detail else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        entry: dict[str, Any] = {"choice": self.choice, "verdict": self.verdict}
        if self.detail:
            entry["detail"] = self.detail
        if self.outcome is not None:
            entry["result"] = _figures(self.outcome)
        return entry


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        judge: who judged.
        start: the rules' placement.
        best: what the plan is set to now.
        placement: its pairs.
        trials: every trial, in order.
        seconds: that the builder took in this run.
        quantized_work: part of the multiply-adds that the rules quantize which still is.
    """

    judge: str
    start: Outcome
    best: Outcome
    placement: Placement
    trials: tuple[Trial, ...]
    seconds: float
    quantized_work: float

    @property
    def headline(self) -> str:
        """`search: 131 → 129 kernels, 139.04 → 137.85 MB; ...`."""
        a, b = self.start.figures, self.best.figures
        text = f"search by {self.judge}: {a.kernels} → {b.kernels} kernels"
        text += f", {a.bytes / 1e6:.2f} → {b.bytes / 1e6:.2f} MB of activations and weights"
        if a.milliseconds is not None and b.milliseconds is not None:
            text += f", {a.milliseconds:.3f} → {b.milliseconds:.3f} ms"
        text += f", {self.start.accuracy} → {self.best.accuracy}"
        return f"{text}; {self.quantized_work:.1%} of the quantized multiply-adds stay quantized"

    def lines(self) -> list[str]:
        """The note: the headline, every trial, and each kernel in the way."""
        untried: dict[str, list[str]] = {}
        for trial in self.trials:
            if trial.verdict == UNTRIED:
                untried.setdefault(trial.detail, []).append(trial.choice)
        tried = [str(trial) for trial in self.trials if trial.verdict != UNTRIED]
        left = [f"{UNTRIED} ({why}): {'; '.join(names)}" for why, names in untried.items()]
        return [self.headline, *tried, *left, *self.in_the_way()]

    def in_the_way(self) -> Iterator[str]:
        """What each kernel that remains is: a line for each, or one for all that nothing mends."""
        inherent: dict[str, list[Finding]] = {}
        for finding in self.best.figures.findings:
            advice = ADVICE[finding.cause]
            if advice.inherent:
                inherent.setdefault(finding.cause, []).append(finding)
                continue
            yield f"in the way: {_where(finding)}: {advice.title}; {advice.mend}"
        for cause, found in inherent.items():
            size = sum(f.activation_bytes or 0 for f in found) / 1e6
            count = sum(len(f.kernels) for f in found)
            kernels = "; ".join(map(_where, found))
            yield f"in the way: {count} kernels, {size:.2f} MB: {ADVICE[cause].title}: {kernels}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for the report."""
        return {
            "judge": self.judge,
            "rules": _figures(self.start),
            "best": _figures(self.best),
            "quantized_work": self.quantized_work,
            "builder_seconds": self.seconds,
            "trials": [trial.to_dict() for trial in self.trials],
            "in_the_way": [
                {
                    "cause": ADVICE[f.cause].title,
                    "kernels": list(f.kernels),
                    "groups": list(f.groups),
                    "detail": f.detail,
                    "activation_bytes": f.activation_bytes,
                    "mend": ADVICE[f.cause].mend,
                }
                for f in self.best.figures.findings
            ],
        }


def _figures(outcome: Outcome) -> dict[str, Any]:
    found = outcome.figures
    return {
        "kernels": found.kernels,
        "activation_bytes": found.activation_bytes,
        "weight_bytes": found.weight_bytes,
        "milliseconds": found.milliseconds,
        "relative_error": outcome.error,
        "by_parts": found.by_parts,
    }


def _where(finding: Finding) -> str:
    places = ", ".join(finding.groups) or ", ".join(finding.nodes) or "no group"
    kernels = ", ".join(map(str, finding.kernels))
    detail = f" ({finding.detail})" if finding.detail else ""
    return f"kernel {kernels} of {places}{detail}"
