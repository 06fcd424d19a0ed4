"""Normalizing: every spelling of a concept to one normal form, before patterns are laid."""

from __future__ import annotations

from collections.abc import Sequence

from fusewright.graph.collector import without_gc
from fusewright.graph.model import Model
from fusewright.normalize import activation, attention, fold, leftovers, linear, padding, pooling
from fusewright.normalize.rule import Edit, Outcome, Rule, apply_rule

# Activations before folding: the Add of x + 3 behind a Conv is HardSigmoid's, not a bias.
RULES: tuple[Rule, ...] = (
    *leftovers.RULES,
    *activation.RULES,
    *linear.RULES,
    *padding.RULES,
    *fold.RULES,
    *pooling.RULES,
    *attention.RULES,
)


def normalize(model: Model, rules: Sequence[Rule] = RULES) -> list[Outcome]:
    """Applies `rules` in order, in place, and again until none changes anything.

    One rewrite uncovers the next: a bias folded into a convolution, the BN behind it.
    """
    outcomes = [Outcome(rule.name) for rule in rules]
    with without_gc():
        edit = Edit(model)
        while True:
            latest = [apply_rule(rule, edit) for rule in rules]
            for outcome, new in zip(outcomes, latest, strict=True):
                outcome.merge(new)
            if not any(new.applied for new in latest):
                return outcomes


__all__ = ["RULES", "Outcome", "Rule", "normalize"]
