"""Which choices go together."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewright.search.compose import Effect, best_subset


def _effect(gain: float, *uses: float, touches: str = "") -> Effect:
    return Effect(gain, uses, frozenset(touches))


@pytest.mark.parametrize(
    ("effects", "room", "best"),
    [
        ([], (0.0,), []),
        ([_effect(1, -1)], (0.0,), [0]),
        ([_effect(1, 1)], (0.0,), []),
        ([_effect(-1, -5)], (0.0,), []),
        # One makes room for the other, and loses less than that gains.
        ([_effect(3, 2), _effect(-1, -2)], (0.0,), [0, 1]),
        ([_effect(1, 2), _effect(-1, -2)], (0.0,), []),
        # Two limits, each broken by one and made good by another.
        ([_effect(5, 1, -1), _effect(4, -1, 1)], (0.0, 0.0), [0, 1]),
        # Both want one thing.
        ([_effect(5, 0, touches="ab"), _effect(4, 0, touches="bc")], (0.0,), [0]),
        ([_effect(5, 0, touches="ab"), _effect(4, 0, touches="b"), _effect(3, 0, touches="a")],
         (0.0,), [1, 2]),
        # The largest does not fit; two small ones do.
        ([_effect(5, 3), _effect(3, 1), _effect(3, 1)], (2.0,), [1, 2]),
    ],
)  # fmt: skip
def test_best_subset(effects: list[Effect], room: tuple[float, ...], best: list[int]) -> None:
    assert best_subset(effects, room) == best


_NUMBERS = st.integers(-5, 5).map(float)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_NUMBERS, _NUMBERS, _NUMBERS), max_size=7), st.integers(0, 3))
def test_stays_within_the_room_and_is_near_the_best(
    rows: list[tuple[float, float, float]], free: int
) -> None:
    effects, room = [_effect(*row) for row in rows], (float(free), float(free))

    def worth(chosen: tuple[int, ...]) -> float | None:
        used = [sum(effects[i].uses[k] for i in chosen) for k in (0, 1)]
        fits = all(a <= b for a, b in zip(used, room, strict=True))
        return sum(effects[i].gain for i in chosen) if fits else None

    found = worth(tuple(best_subset(effects, room)))
    assert found is not None
    sizes = range(len(effects) + 1)
    every = chain.from_iterable(combinations(range(len(effects)), n) for n in sizes)
    values = [value for value in map(worth, every) if value is not None]
    # No single step from the best of one or two is missed; the whole best mostly is found.
    few = [worth(c) for n in (0, 1, 2) for c in combinations(range(len(effects)), n)]
    assert found >= max(value for value in few if value is not None)
    assert found <= max(values)
