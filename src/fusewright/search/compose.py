"""Which choices to take together: the effects of single choices, as if they added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

# What a choice uses beyond the room weighs more than anything it could gain.
_PENALTY = 1e3
_TINY = 1e-12


@dataclass(frozen=True)
class Effect:
    """What one choice does, tried alone.

    Attributes:
        gain: by how much the cost falls; negative where it rises.
        uses: of each thing that has a limit, in parts of what the rules use; negative where the
            choice gives some back.
        touches: what it changes; choices that touch the same thing exclude each other.
    """

    gain: float
    uses: tuple[float, ...]
    touches: frozenset[str]


def best_subset(effects: Sequence[Effect], room: Sequence[float]) -> list[int]:
    """The positions of choices that gain most together and stay within the room.

    A local search over adding, removing and exchanging one or two, from nothing and from all that
    gain; deterministic. Choices that lose are taken where they make room for more than they lose.

    Args:
        effects: of the choices.
        room: how much of each thing may be used.
    """
    gaining = [i for i, effect in enumerate(effects) if effect.gain > 0]
    starts = (frozenset[int](), _without_conflicts(effects, gaining))
    found = [_climbed(effects, room, start) for start in starts]
    feasible = [chosen for chosen in found if _excess(effects, room, chosen) <= _TINY]
    best = max(feasible, key=lambda chosen: _gain(effects, chosen), default=frozenset[int]())
    return sorted(best) if _gain(effects, best) > _TINY else []


def _climbed(
    effects: Sequence[Effect], room: Sequence[float], chosen: frozenset[int]
) -> frozenset[int]:
    value = _value(effects, room, chosen)
    while True:
        best, better = chosen, value
        for moved in _moves(effects, chosen):
            worth = _value(effects, room, moved)
            if worth > better + _TINY:
                best, better = moved, worth
        if best == chosen:
            return chosen
        chosen, value = best, better


def _moves(effects: Sequence[Effect], chosen: frozenset[int]) -> list[frozenset[int]]:
    outside = [i for i in range(len(effects)) if i not in chosen]
    dropped = [chosen, *(chosen - {i} for i in sorted(chosen))]
    added = [frozenset[int](), *(frozenset({i}) for i in outside)]
    moves = [kept | more for kept in dropped for more in added]
    moves += [chosen | set(pair) for pair in combinations(outside, 2)]
    return [move for move in moves if move != chosen and not _conflicts(effects, move)]


def _without_conflicts(effects: Sequence[Effect], wanted: Sequence[int]) -> frozenset[int]:
    chosen: frozenset[int] = frozenset()
    for i in sorted(wanted, key=lambda i: -effects[i].gain):
        if not _conflicts(effects, chosen | {i}):
            chosen |= {i}
    return chosen


def _conflicts(effects: Sequence[Effect], chosen: frozenset[int]) -> bool:
    touched = [name for i in chosen for name in effects[i].touches]
    return len(touched) != len(set(touched))


def _value(effects: Sequence[Effect], room: Sequence[float], chosen: frozenset[int]) -> float:
    return _gain(effects, chosen) - _PENALTY * _excess(effects, room, chosen)


def _gain(effects: Sequence[Effect], chosen: frozenset[int]) -> float:
    return sum(effects[i].gain for i in sorted(chosen))


def _excess(effects: Sequence[Effect], room: Sequence[float], chosen: frozenset[int]) -> float:
    order = sorted(chosen)
    used = (sum(effects[i].uses[limit] for i in order) for limit in range(len(room)))
    return sum(max(0.0, amount - free) for amount, free in zip(used, room, strict=True))
