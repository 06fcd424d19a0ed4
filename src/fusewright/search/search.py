"""The search: every choice tried alone on the builder, and the best of them taken together.

Tried alone it is built in parts, those around what it changes (`regions`), where figures add up.

Taken is what costs less than the rules' placement and in nothing that counts more: kernels, bytes,
and the error measured on the verify samples, to the last digit. A choice that saves bytes may pay
for one that saves kernels, and one that is more accurate for one that is less. What single choices
did says which to take together; what is taken was built and measured together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from fusewright.errors import EngineError, ModelError
from fusewright.plan.plan import FLOAT, Plan, node_index
from fusewright.search.arithmetic import multiply_adds
from fusewright.search.bench import Bench, Spent, Workshop
from fusewright.search.choices import Choice, find_choices
from fusewright.search.compose import Effect, best_subset
from fusewright.search.journal import Journal
from fusewright.search.judge import Figures, Judge
from fusewright.search.result import (
    FAILED,
    LEFT,
    REJECTED,
    TAKEN,
    UNTRIED,
    Outcome,
    SearchResult,
    Trial,
)
from fusewright.search.variant import Variant

# Of the budget, so that what was tried alone can still be built together.
_FOR_SINGLES = 0.8
# A choice that costs more may still pay, by its accuracy, for another; not if it costs much more.
_MAY_COST = 0.01
# Classes of a family that gains are not tried one by one where the family is this little of it.
_LITTLE_WORK = 0.01


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        budget: seconds that the builder may take; the build under way ends. What the journal knows
            costs nothing.
        float_share: part of the multiply-adds that the rules quantize that may become float. A plan
            shows kernels and bytes, not the arithmetic that a quantized format saves; this keeps
            the search from selling it.
        fixed: names of groups that the user decided.
        told: told of each trial as it ends, with the seconds that it took.
    """

    budget: float = 600.0
    float_share: float = 0.1
    fixed: frozenset[str] = field(default=frozenset())
    told: Callable[[str, float], None] = lambda text, seconds: None


def search_placement(
    plan: Plan,
    workshop: Workshop,
    judge: Judge,
    journal: Journal,
    options: SearchOptions = SearchOptions(),
) -> SearchResult:
    """Searches for a better placement than the plan's, and sets the plan to it, in place.

    Raises:
        EngineError: the rules' own placement does not build, or cannot be judged.
    """
    bench = Bench(plan, workshop, judge, journal)
    try:
        return _Search(plan, bench, judge, options).run()
    except BaseException:
        bench.baseline.set(plan)
        raise


class _Search:
    def __init__(self, plan: Plan, bench: Bench, judge: Judge, options: SearchOptions) -> None:
        self.plan, self.bench, self.judge, self.options = plan, bench, judge, options
        nodes = node_index(plan.model.graph)
        self._work = {g.name: multiply_adds(g, nodes) for g in plan.groups if g.reads_quantized}
        self.tried: dict[str, tuple[Choice, Outcome]] = {}
        self.said: dict[str, Trial] = {}
        self.together: list[Trial] = []
        self.taken: list[str] = []

    def run(self) -> SearchResult:
        self.start = self.best = self.bench.start()
        choices = find_choices(self.plan, self.bench.baseline, self.options.fixed)
        self.bench.budget = self.options.budget * _FOR_SINGLES
        self._try_each(self._ordered(choices))
        self.bench.budget = self.options.budget
        with suppress(Spent):
            self._compose()
        placement = self.bench.baseline.keep(self.plan, self.best.variant)
        self._say_reasons()
        return SearchResult(
            self.judge.name,
            self.start,
            self.best,
            placement,
            (*self._singles(), *self.together),
            self.bench.spent,
            1.0 - self._share(self.best.variant),
        )

    def _ordered(self, choices: Sequence[Choice]) -> list[Choice]:
        """By what they may gain, most first; equals stay in the order of the plan."""
        start = self.start.figures
        burden: dict[str, float] = {}
        for finding in start.findings:
            cost = (finding.activation_bytes or 0) / start.bytes
            cost += len(finding.kernels) / start.kernels
            for name in finding.groups:
                burden[name] = burden.get(name, 0.0) + cost / len(finding.groups)

        def gain(choice: Choice) -> float:
            # A quantized weight has a byte an element, a half one two.
            return sum(burden.get(g, 0.0) for g in choice.groups) - choice.weights / start.bytes

        return sorted(choices, key=lambda choice: -gain(choice))

    def _try_each(self, choices: Sequence[Choice]) -> None:
        """Tries each choice alone."""
        for number, choice in enumerate(choices, 1):
            begun = time.perf_counter()
            trial = self.said[choice.name] = self._try_one(choice)
            if trial.verdict != UNTRIED:
                found = trial.detail if trial.outcome is None else str(trial.outcome)
                text = f"{number}/{len(choices)} {choice.name}: {found}"
                self.options.told(text, time.perf_counter() - begun)

    def _try_one(self, choice: Choice) -> Trial:
        detail = self._not_worth_trying(choice)
        if detail is not None:
            return Trial(choice.name, UNTRIED, detail)
        try:
            outcome = self.bench.outcome(
                choice.variant, lambda found: self._gain(found) > -_MAY_COST, choice.groups
            )
        except (EngineError, ModelError) as error:
            return Trial(choice.name, FAILED, str(error))
        except Spent:
            detail = f"the budget of {self.options.budget:g} s is spent"
            return Trial(choice.name, UNTRIED, detail)
        self.tried[choice.name] = choice, outcome
        return Trial(choice.name, LEFT, "", outcome)

    def _not_worth_trying(self, choice: Choice) -> str | None:
        share = self._share(choice.variant)
        if share > self.options.float_share:
            return (
                f"it is {share:.1%} of the quantized multiply-adds, and"
                f" {self.options.float_share:.0%} may become float"
            )
        for family, outcome in self.tried.values():
            if not (choice.is_class and choice.variant.is_part_of(family.variant)):
                continue
            found = self._amounts(outcome.figures)
            if all(a >= b for a, b in zip(found, self._limits, strict=True)):
                return f"part of '{family.name}', which saves nothing"
            little = self._share(family.variant) <= _LITTLE_WORK
            if little and self._gain(outcome.figures) > 0:
                return f"part of '{family.name}'"
        return None

    def _compose(self) -> None:
        """Takes the best choices together, then what there is still room for."""
        effects = {n: self._effect(*found) for n, found in self.tried.items()}
        left = [name for name, effect in effects.items() if all(map(math.isfinite, effect.uses))]
        while True:
            touched = {thing for name in self.taken for thing in effects[name].touches}
            left = [name for name in left if not effects[name].touches & touched]
            best = best_subset([effects[name] for name in left], self._room())
            chosen = [left[i] for i in best]
            while chosen:
                over = self._take(chosen)
                if over is None:
                    break
                # The sum was not what its parts had promised: without the worst of them, then.
                worst = max(chosen, key=lambda name: _price(effects[name], over))
                chosen.remove(worst)
                left.remove(worst)
            if not chosen:
                return
            self.taken += chosen

    def _take(self, names: Sequence[str]) -> int | None:
        """Builds some choices on top of what is taken, and takes them where they hold.

        Returns:
            None where they do; else which limit is exceeded, or -1 for no gain.
        """
        variant = self.best.variant
        for name in names:
            variant = variant.plus(self.tried[name][0].variant)
        text = f"{len(names)} choices together" + (" with those taken" if self.taken else "")
        try:
            outcome = self.bench.outcome(variant)
        except (EngineError, ModelError) as error:
            self.together.append(Trial(text, FAILED, str(error)))
            return -1
        over, detail = self._exceeded(outcome) or (-1, "no gain")
        gain = self._gain(outcome.figures) - self._gain(self.best.figures)
        if over < 0 and gain > self.judge.least_gain:
            self.together.append(Trial(text, TAKEN, "", outcome))
            self.best = outcome
            return None
        self.together.append(Trial(text, REJECTED, detail, outcome))
        return over

    def _gain(self, found: Figures) -> float:
        """By how much the cost falls: the mean of what counts, in parts of the rules'."""
        parts = [a / b for a, b in zip(self._amounts(found), self._limits, strict=True)]
        return 1.0 - sum(parts) / len(parts)

    def _amounts(self, found: Figures) -> list[float]:
        return list(self.judge.amounts(found).values())

    @property
    def _limits(self) -> list[float]:
        return self._amounts(self.start.figures)

    def _effect(self, choice: Choice, outcome: Outcome) -> Effect:
        """What a choice did alone; noise adds up as the square of the error."""
        pairs = zip(self._amounts(outcome.figures), self._limits, strict=True)
        uses = (*(a / b - 1.0 for a, b in pairs), self._noise(outcome) - self._noise(self.start))
        share = self._share(choice.variant)
        variant = choice.variant
        touches = {name for name, _ in variant.decisions} | variant.skips | variant.residual
        return Effect(self._gain(outcome.figures), (*uses, share), frozenset(touches))

    def _room(self) -> tuple[float, ...]:
        pairs = zip(self._amounts(self.best.figures), self._limits, strict=True)
        room = (*(1.0 - a / b for a, b in pairs), self._noise(self.start) - self._noise(self.best))
        return (*room, self.options.float_share - self._share(self.best.variant))

    def _noise(self, outcome: Outcome) -> float:
        """In parts of the rules'."""
        if outcome.error is None:
            return math.inf
        floor = self.start.error or 0.0
        return (outcome.error / floor) ** 2 if floor else math.inf if outcome.error else 1.0

    def _exceeded(self, outcome: Outcome) -> tuple[int, str] | None:
        """The first limit that a placement exceeds, and how; None where it keeps to all."""
        limits = self.judge.amounts(self.start.figures)
        found = self.judge.amounts(outcome.figures)
        for index, (name, limit) in enumerate(limits.items()):
            if found[name] > limit:
                return index, f"{found[name]:,.6g} {name}, the rules have {limit:,.6g}"
        if self._noise(outcome) > self._noise(self.start):
            return len(limits), f"less accurate than the rules: {self.start.accuracy}"
        return None

    def _share(self, variant: Variant) -> float:
        """Part of the quantized multiply-adds that a variant makes float."""
        lost = sum(self._work.get(name, 0) for name, what in variant.decisions if what == FLOAT)
        return lost / max(sum(self._work.values()), 1)

    def _singles(self) -> list[Trial]:
        """What was tried alone, and what became of it."""
        trials = []
        for name, trial in self.said.items():
            if name in self.taken:
                trial = replace(trial, verdict=TAKEN)
            elif trial.outcome is not None:
                exceeded = self._exceeded(trial.outcome)
                why = "no room for it beside what was taken" if self.taken else "no gain"
                if self._gain(trial.outcome.figures) <= self.judge.least_gain:
                    why = "no gain"
                elif exceeded is not None:
                    why = exceeded[1]
                trial = replace(trial, detail=why)
            trials.append(trial)
        return trials

    def _say_reasons(self) -> None:
        """Groups that the search decided say so."""
        for name in self.taken:
            choice = self.tried[name][0]
            text = f"search: {self.start.figures} → {self.best.figures}, with {name}"
            for group, _ in choice.variant.decisions:
                self.plan.group(group).reason = text
            for group in choice.variant.skips:
                self.plan.group(group).reason += f"; the skip in float by {text}"


def _price(effect: Effect, limit: int) -> float:
    """What a choice uses of one limit for what it gains; without a limit, how little it gains."""
    if limit < 0:
        return -effect.gain
    used = effect.uses[limit]
    # One that loses is there to make room: it goes last.
    return used / effect.gain if effect.gain > 0 else -math.inf
