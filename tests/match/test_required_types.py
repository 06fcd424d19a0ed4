"""The operators that a graph must have for a pattern to match at all."""

from __future__ import annotations

import pytest

from fusewright.match.pattern import (
    Pattern,
    const,
    maybe,
    one_of,
    op,
    optional,
    required_types,
    var,
)
from fusewright.normalize import RULES

X = var("x")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (X, ""),
        (op("Relu", X), "Relu"),
        (op("Relu|Elu", X), ""),
        (op("Mul", X, op("Sigmoid|Tanh", op("Neg", X))), "Mul Neg"),
        (maybe("Cast", op("Erf", X)), "Erf"),
        (one_of(op("Add", op("Erf", X), const()), op("Erf", X)), "Erf"),
        (one_of(op("Relu", X), X), ""),
        (op("Clip", X, optional(op("Exp", X))), "Clip"),
    ],
)
def test_required_types(pattern: Pattern, expected: str) -> None:
    assert required_types(pattern) == frozenset(expected.split())


def test_a_rule_needs_what_its_every_spelling_has() -> None:
    needs = {rule.name: rule.needs for rule in RULES}
    assert needs["LayerNormChain"] == {"ReduceMean", "Sub"}
    assert needs["GeluErf"] == {"Add", "Erf", "Mul"}
    assert needs["FoldScale"] == frozenset()
