"""Maxima per channel and sampled rows: the same bits in any order, batch or split."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from building import Net
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusewright.calibrate.channels import ChannelObserver, observe_channels
from fusewright.calibrate.runner import CalibrationOptions
from fusewright.errors import DataError, ModelError

FEEDS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 7), st.just(3)),
    elements=st.floats(-1e6, 1e6, width=32),
)


def seen(feeds: np.ndarray, rows: int = 4) -> ChannelObserver:
    observer = ChannelObserver(rows)
    for feed in feeds:
        observer.update(feed)
    return observer


@given(FEEDS, st.randoms(use_true_random=False), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_order_and_parts_do_not_matter(feeds, random, cut):
    whole = seen(feeds)
    order = list(range(len(feeds)))
    random.shuffle(order)
    first, second = seen(feeds[order[:cut]]), seen(feeds[order[cut:]])
    states = [json.loads(json.dumps(part.state())) for part in (second, first)]
    one, other = (ChannelObserver.from_state(state) for state in states)
    one.merge(other)
    assert one.state() == seen(feeds[order]).state() == whole.state()
    assert np.array_equal(whole.maxima, np.abs(feeds).max(axis=(0, 1)))
    assert whole.count == feeds.shape[0] * feeds.shape[1]


@given(FEEDS, st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_maxima_do_not_depend_on_the_batch(feeds, batch):
    joined = ChannelObserver()
    for i in range(0, len(feeds), batch):
        joined.update(feeds[i : i + batch])
    assert joined.state() == seen(feeds, rows=0).state()


def test_halves_share_no_feed_and_hold_their_own_maxima() -> None:
    rng = np.random.default_rng(0)
    feeds = rng.standard_normal((32, 10, 4)).astype(np.float32)
    halves = seen(feeds, rows=1000).halves
    assert len(halves) == 2
    assert sum(half.count for half in halves) == 320
    assert min(half.count for half in halves) >= 80
    rows = [{row.tobytes() for row in half.rows} for half in halves]
    assert not rows[0] & rows[1]
    for feed in feeds:
        inside = [feed[0].tobytes() in half for half in rows]
        assert all(
            (row.tobytes() in half) == i
            for row in feed
            for half, i in zip(rows, inside, strict=True)
        )
    for half in halves:
        assert np.array_equal(half.maxima, np.abs(half.rows).max(axis=0))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_few_feeds_still_make_two_halves(count: int) -> None:
    """Of two feeds, every fourth pair goes to one part."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        feeds = rng.standard_normal((count, 5, 6)).astype(np.float32)
        halves = seen(feeds).halves
        assert len(halves) == 2
        assert sum(half.count for half in halves) == 5 * count
        first, other = seen(feeds[:1]), seen(feeds[1:])
        other.merge(first)
        for one, two in zip(halves, other.halves, strict=True):
            assert np.array_equal(one.maxima, two.maxima)
            assert np.array_equal(one.rows, two.rows)


def test_equal_feeds_make_two_halves_and_one_makes_one() -> None:
    feed = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    assert [half.count for half in seen(np.repeat(feed, 3, axis=0)).halves] == [8, 4]
    assert [half.count for half in seen(feed).halves] == [4]
    assert seen(feed[:0]).halves == []


def test_the_sample_is_bounded_and_of_different_rows() -> None:
    rng = np.random.default_rng(0)
    feeds = np.repeat(rng.standard_normal((20, 3, 5)), 4, axis=1).astype(np.float32)
    observer = seen(feeds, rows=16)
    for half in observer.halves:
        assert len(half.rows) == 16
        assert len(np.unique(half.rows, axis=0)) == 16


def test_the_sample_is_fair() -> None:
    """Which rows are kept does not follow their size."""
    rng = np.random.default_rng(0)
    feeds = rng.uniform(0, 1, (64, 64, 4)).astype(np.float32)
    rows = np.concatenate([half.rows for half in seen(feeds, rows=256).halves])
    assert abs(rows.mean() - 0.5) < 0.03
    assert np.abs(np.sort(rows[:, 0]) - np.linspace(0, 1, len(rows))).max() < 0.08


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(value: float) -> None:
    array = np.ones((2, 3), np.float32)
    array[1, 1] = value
    with pytest.raises(DataError, match="'t' holds NaN or Inf"):
        ChannelObserver().update(array, "t")


def test_other_channels_and_types_are_refused() -> None:
    observer = ChannelObserver()
    observer.update(np.ones((2, 3), np.float32), "t")
    with pytest.raises(DataError, match="4 channels, not 3"):
        observer.update(np.ones((2, 4), np.float32), "t")
    with pytest.raises(DataError, match="int64"):
        observer.update(np.ones((2, 3), np.int64), "t")
    with pytest.raises(DataError, match="keep 0 and 5 rows"):
        observer.merge(ChannelObserver(5))
    with pytest.raises(DataError, match="never seen"):
        _ = ChannelObserver().maxima
    with pytest.raises(DataError, match="not the state"):
        ChannelObserver.from_state({"limit": 1})


def test_an_empty_tensor_is_passed_over() -> None:
    observer = ChannelObserver(3)
    observer.update(np.ones((0, 3), np.float32), "t")
    assert observer.maxima.tolist() == [0.0, 0.0, 0.0]
    observer.update(np.ones((2, 3), np.float16), "t")
    assert observer.maxima.tolist() == [1.0, 1.0, 1.0]
    assert observer.maxima.dtype == np.float32


def _model() -> onnx.ModelProto:
    net = Net()
    x = net.op("Mul", net.input("x", "batch", 4, 3), [[1.0, 10.0, 100.0]], name="wide")
    return net.proto(net.op("Tanh", x))


def test_one_pass_over_the_samples() -> None:
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 4, 3)).astype(np.float32)} for _ in range(6)]
    progress: list[int] = []
    found = observe_channels(
        _model(), {"wide_y": 8, "x": 0}, samples, CalibrationOptions(), progress.append
    )
    values = np.concatenate([s["x"] for s in samples])
    wide = np.abs(values * np.array([1, 10, 100], np.float32)).max(axis=(0, 1))
    assert np.array_equal(found.observers["wide_y"].maxima, wide)
    assert np.array_equal(found.observers["x"].maxima, np.abs(values).max(axis=(0, 1)))
    assert (found.samples, progress) == (6, [1, 2, 3, 4, 5, 6])
    parts = [observe_channels(_model(), {"wide_y": 8}, s) for s in (samples[:2], samples[2:])]
    parts[1].merge(parts[0])
    assert parts[1].observers["wide_y"].state() == found.observers["wide_y"].state()
    assert parts[1].samples == 6
    with pytest.raises(DataError, match="different tensors"):
        parts[0].merge(found)


def test_a_tensor_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="'nowhere'"):
        observe_channels(_model(), {"nowhere": 0}, [])
