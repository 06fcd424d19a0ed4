"""The definition of a window, and telling it from an index: properties over drawn sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusewright.match.window import Window, window_of

BATCH = 2


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Maps up to 9 by 9, any window, a shift below it, padding as it has to be."""
    size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    rows, columns = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    padding = -rows % size[0], -columns % size[1]
    shift = draw(
        st.tuples(st.integers(0, min(size[0], rows) - 1), st.integers(0, min(size[1], columns) - 1))
    )
    rolls_first = draw(st.booleans()) if any(padding) and any(shift) else False
    return Window(size, shift, padding, (rows, columns), rolls_first)


def by_hand(window: Window, batch: int) -> np.ndarray:
    """The definition token by token."""
    (rows, columns), (height, width) = window.map, window.size
    padded = rows + window.padding[0], columns + window.padding[1]
    rolled = window.map if window.rolls_first else padded
    places = []
    for b in range(batch):
        for top in range(0, padded[0], height):
            for left in range(0, padded[1], width):
                for i in range(top, top + height):
                    for j in range(left, left + width):
                        inside = i < rolled[0] and j < rolled[1]
                        r = (i + window.shift[0]) % rolled[0] if inside else rows
                        c = (j + window.shift[1]) % rolled[1] if inside else columns
                        real = r < rows and c < columns
                        places.append((b * rows + r) * columns + c if real else -1)
    return np.array(places).reshape(-1, height * width)


@given(windows())
@settings(deadline=None, max_examples=150)
@example(Window((2, 3), (1, 1), (1, 2), (5, 7)))
@example(Window((2, 3), (1, 1), (1, 2), (5, 7), rolls_first=True))
@example(Window((4, 4), (0, 0), (3, 3), (1, 1)))
def test_cut_is_the_definition(window: Window) -> None:
    assert np.array_equal(window.cut(BATCH), by_hand(window, BATCH))


@given(windows())
@settings(deadline=None, max_examples=150)
def test_merge_undoes_cut_and_cut_undoes_merge(window: Window) -> None:
    rows, columns = window.map
    tokens = np.arange(BATCH * rows * columns)
    cut, merge = window.cut(BATCH).reshape(-1), window.merge(BATCH)
    assert np.array_equal(cut[merge], tokens)
    assert np.array_equal(merge[cut[cut >= 0]], np.flatnonzero(cut >= 0))
    # Padding is what is left over.
    assert len(cut) - len(merge) == np.count_nonzero(cut < 0)


@given(windows())
@settings(deadline=None, max_examples=150)
def test_a_window_is_told_from_its_cut(window: Window) -> None:
    """Of a map of known size; another window may move the tokens alike, but no other tokens."""
    cut = window.cut(BATCH)
    found = window_of(cut, BATCH, window.map)
    assert found is not None
    assert np.array_equal(found.cut(BATCH), cut)
    assert found.map == window.map
    if min(window.map) > 4 and min(window.size) > 1:
        # Larger than the window both ways: there is one description only.
        told = replace(found, rolls_first=window.rolls_first)
        assert told == window


@given(windows())
@settings(deadline=None, max_examples=150)
def test_a_window_is_told_of_a_flat_map_too(window: Window) -> None:
    cut = window.cut(BATCH)
    found = window_of(cut, BATCH, None)
    assert found is not None
    assert np.array_equal(found.cut(BATCH), cut)
    assert np.array_equal(found.merge(BATCH), window.merge(BATCH))


TOLD = [
    Window((7, 7), (3, 3), (0, 0), (14, 14)),
    Window((7, 7), (0, 0), (0, 0), (7, 7)),
    Window((2, 3), (1, 2), (0, 0), (6, 9)),
    Window((3, 2), (2, 1), (0, 0), (9, 6)),
    Window((4, 4), (2, 2), (3, 1), (5, 7)),
    Window((4, 4), (2, 2), (1, 3), (7, 5)),
    Window((4, 4), (2, 2), (3, 1), (5, 7), rolls_first=True),
]


@pytest.mark.parametrize("size_is_known", [True, False], ids=["map", "flat map"])
@pytest.mark.parametrize("window", TOLD, ids=str)
def test_parameters_are_recovered(window: Window, size_is_known: bool) -> None:
    found = window_of(window.cut(1), 1, window.map if size_is_known else None)
    assert found == window


@given(windows(), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=100)
def test_two_tokens_exchanged_are_no_window(window: Window, first: int, second: int) -> None:
    cut = window.cut(BATCH)
    flat = cut.reshape(-1)
    one, two = first % flat.size, second % flat.size
    if flat[one] == flat[two] or flat.size <= BATCH * 2:
        return
    flat[one], flat[two] = flat[two], flat[one]
    found = window_of(cut, BATCH, window.map)
    assert found is None or np.array_equal(found.cut(BATCH), cut)
    if window.shift == (0, 0) and not any(window.padding) and min(window.map) > 2:
        assert found is None


def test_covering_window_is_a_plain_reshape() -> None:
    window = Window((7, 7), (0, 0), (0, 0), (7, 7))
    assert window.covers_map
    assert np.array_equal(window.cut(3).reshape(-1), np.arange(3 * 49))
    for other in TOLD:
        assert other.covers_map == (other == window)
