"""Observers against brute force; parts in any order and cut give the same bits as the whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusewright.calibrate.observers import (
    Histogram,
    MaxObserver,
    Scratch,
    from_state,
    merge_states,
)
from fusewright.errors import DataError

ARRAYS = hnp.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def seen(*arrays: np.ndarray) -> Histogram:
    observer = Histogram()
    for array in arrays:
        observer.update(array)
    return observer


@given(ARRAYS, st.randoms(use_true_random=False), st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=60, deadline=None)
def test_order_and_cuts_do_not_matter(array, random, cuts):
    whole = seen(array).state()
    shuffled = np.array(random.sample(array.tolist(), array.size), np.float32)
    parts = np.split(shuffled, sorted(min(cut, array.size) for cut in cuts))
    assert seen(*parts).state() == whole
    states = [seen(part).state() for part in parts]
    random.shuffle(states)
    assert merge_states(json.loads(json.dumps(states))).state() == whole


@given(ARRAYS)
@example(np.array([2.0**-130, np.nextafter(np.float32(2.0**-130), np.float32(0))], np.float32))
@settings(max_examples=60, deadline=None)
def test_counts_equal_brute_force(array):
    bins = seen(array).bins()
    magnitude = np.abs(array.astype(np.float64))
    tiny = 2.0**-130
    assert bins.total == array.size
    assert bins.zeros == np.count_nonzero(magnitude < tiny)
    positive = magnitude[magnitude >= tiny]
    for count, low, high in zip(bins.counts, bins.edges, bins.edges[1:], strict=False):
        assert count <= np.count_nonzero((positive >= low) & (positive <= high))
    expected, _ = (
        np.histogram(positive, np.append(bins.edges[:-1], np.inf))
        if len(bins.counts)
        else (np.zeros(0), None)
    )
    np.testing.assert_array_equal(bins.counts, expected)
    assert seen(array).maximum == magnitude.max()
    if positive.size:
        assert bins.edges[-1] == magnitude.max()


def test_bins_are_at_most_1_128_wide():
    bins = seen(np.geomspace(1e-5, 1e5, 5000, dtype=np.float32)).bins()
    width = np.diff(bins.edges) / bins.edges[:-1]
    assert width.max() <= 1 / 128


def test_many_elements_cross_the_work_array():
    array = np.random.default_rng(0).standard_normal(200_001).astype(np.float32)
    assert seen(array).state() == seen(*np.array_split(array, 7)).state()
    assert seen(array).bins().counts.sum() == array.size


def test_float16_widens_and_any_layout_is_taken():
    array = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float16)
    assert seen(array).state() == seen(array.astype(np.float32)).state()
    assert seen(array.transpose(2, 0, 1)[::-1]).state() == seen(array).state()


def test_shared_scratch_does_not_mix():
    scratch, rng = Scratch(), np.random.default_rng(0)
    arrays = [rng.standard_normal(1000).astype(np.float32) for _ in range(2)]
    shared = [Histogram(scratch) for _ in arrays]
    for observer, array in zip(shared, arrays, strict=True):
        observer.update(array)
    assert [o.state() for o in shared] == [seen(array).state() for array in arrays]


@pytest.mark.parametrize("kind", [MaxObserver, Histogram])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_name_the_tensor(kind, bad):
    with pytest.raises(DataError, match="'layer1/out' holds NaN or Inf"):
        kind().update(np.array([1.0, bad, -2.0], np.float32), "layer1/out")


def test_float64_too_large_for_float32_is_named():
    with pytest.raises(DataError, match="'x'"):
        Histogram().update(np.array([1e300]), "x")


def test_integers_are_refused():
    with pytest.raises(DataError, match="'ids' is int64"):
        Histogram().update(np.arange(3), "ids")


def test_max_observer_agrees_and_round_trips():
    array = np.array([[-3.5, 1.0], [0.0, 2.0]], np.float32)
    observer = MaxObserver()
    observer.update(array)
    observer.update(np.zeros((0, 2), np.float32))
    assert (observer.maximum, observer.count) == (3.5, 4)
    assert from_state(json.loads(json.dumps(observer.state()))).state() == observer.state()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"kind": "other", "maximum": 1.0, "count": 1},
        {"kind": "histogram", "shift": 3, "first": 0, "counts": [], "maximum": 1.0, "count": 0},
        {"kind": "histogram", "shift": 16, "first": -1, "counts": [1], "maximum": 1, "count": 1},
    ],
)
def test_a_foreign_state_is_refused(state):
    with pytest.raises(DataError, match="not the state"):
        from_state(state)


def test_different_kinds_do_not_merge():
    with pytest.raises(TypeError):
        Histogram().merge(MaxObserver())
    with pytest.raises(DataError, match="no observer states"):
        merge_states([])
