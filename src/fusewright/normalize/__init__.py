"""Normalizing: every spelling of a concept to one normal form, before patterns are laid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusewright.graph.model import Model
from fusewright.normalize import activation, fold, leftovers, linear, padding, pooling
from fusewright.normalize.rule import Outcome, Rule, apply_rule

# Activations before folding: the Add of x + 3 behind a Conv is HardSigmoid's, not a bias.
RULES: tuple[Rule, ...] = (
    *leftovers.RULES,
    *activation.RULES,
    *linear.RULES,
    *padding.RULES,
    *fold.RULES,
    *pooling.RULES,
)


def normalize(
    model: Model,
    rules: Sequence[Rule] = RULES,
    after: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Applies `rules` in order, in place; `after` is called behind each that changed something."""
    outcomes = []
    for rule in rules:
        outcome = apply_rule(rule, model)
        outcomes.append(outcome)
        if outcome.applied and after is not None:
            after(outcome)
    return outcomes


__all__ = ["RULES", "Outcome", "Rule", "normalize"]
