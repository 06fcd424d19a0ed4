"""Normalizing: every spelling of a concept to one normal form, before patterns are laid."""

from __future__ import annotations

from collections.abc import Sequence

from fusewright.graph.collector import without_gc
from fusewright.graph.model import Model
from fusewright.normalize import (
    activation,
    attention,
    einsum,
    fold,
    gelu,
    groupnorm,
    kerasnorm,
    layernorm,
    leftovers,
    linear,
    nan_guard,
    onnx_attention,
    padding,
    pooling,
    reductions,
    rmsnorm,
    softmax,
    stored,
    window,
)
from fusewright.normalize.rule import Edit, Outcome, Rule, apply_rule

# The larger norm first: the moments of a GroupNorm are a LayerNorm's, and those hold an RMSNorm's.
# Norms before pooling, which takes a mean over height and width for its own. Activations before
# folding: the Add of x + 3 behind a Conv is HardSigmoid's, not a bias.
RULES: tuple[Rule, ...] = (
    *leftovers.RULES,
    *stored.RULES,
    *softmax.RULES,
    *einsum.RULES,
    *onnx_attention.RULES,
    *reductions.RULES,
    *groupnorm.RULES,
    *kerasnorm.RULES,
    *layernorm.RULES,
    *rmsnorm.RULES,
    *gelu.RULES,
    *activation.RULES,
    *linear.RULES,
    *padding.RULES,
    *fold.RULES,
    *pooling.RULES,
    *nan_guard.RULES,
    *attention.RULES,
    *window.RULES,
)


def normalize(model: Model, rules: Sequence[Rule] = RULES) -> list[Outcome]:
    """Applies `rules` in order, in place, and again until none changes anything.

    One rewrite uncovers the next: a bias folded into a convolution, the BN behind it.
    """
    outcomes = {rule.name: Outcome(rule.name) for rule in rules}
    with without_gc():
        edit, applied = Edit(model), True
        while applied:
            applied = False
            for rule in rules:
                if not rule.is_last:
                    new = apply_rule(rule, edit)
                    outcomes[rule.name].merge(new)
                    applied |= bool(new.applied)
        for rule in rules:
            if rule.is_last:
                outcomes[rule.name].merge(apply_rule(rule, edit))
    return [outcomes[rule.name] for rule in rules]


__all__ = ["RULES", "Outcome", "Rule", "normalize"]
