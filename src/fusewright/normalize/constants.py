"""Constants in spellings: one element of any rank, of a stated value or bound to a name."""

from __future__ import annotations

from fusewright.graph.walk import scalar
from fusewright.match.matcher import Match
from fusewright.match.pattern import Const, const

# A sixth written with six digits, 0.166667, is 2e-6 off; one with five would fail the proof.
EXACT = 3e-6


def exactly(value: float, tolerance: float = EXACT) -> Const:
    """A one-element constant of this value; tighter than `number`, as a rewrite must be exact."""
    return const(
        test=lambda t: (
            (found := scalar(t)) is not None and abs(found - value) <= tolerance * abs(value)
        ),
        expected=f"the constant {value:g}",
    )


def one(name: str) -> Const:
    """A one-element constant."""
    return const(
        name, test=lambda t: scalar(t) is not None, expected=f"a one-element constant '{name}'"
    )


def number_of(match: Match, name: str, default: float) -> float:
    """The value of a one-element constant of the match, or `default` where it has none."""
    tensor = match.tensors.get(name)
    found = None if tensor is None else scalar(tensor)
    return default if found is None else found
