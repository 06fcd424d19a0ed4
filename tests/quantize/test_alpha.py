"""The search for α: never worse than no smoothing in its own measure, judged on unseen rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusewright.calibrate import CalibrationOptions
from fusewright.calibrate.channels import ChannelObserver, Half
from fusewright.quantize.alpha import Judge, choose_alpha
from fusewright.quantize.migrate import smoothing_scale

RNG = np.random.default_rng(2)


def _seen(values: np.ndarray, rows: int = 128) -> list[Half]:
    """Feeds [feeds, tokens, channels]."""
    observer = ChannelObserver(rows)
    for feed in values:
        observer.update(feed)
    return observer.halves


def _data(feeds: int = 32, tokens: int = 50, channels: int = 32) -> np.ndarray:
    return RNG.standard_normal((feeds, tokens, channels)).astype(np.float32)


def _matrix(channels: int = 32, out: int = 48) -> np.ndarray:
    return RNG.standard_normal((channels, out)).astype(np.float32)


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile"])
def test_outliers_are_smoothed(method: str) -> None:
    values = _data()
    values[..., [3, 17]] *= 60.0
    choice = choose_alpha(_seen(values), [_matrix()], CalibrationOptions(method))
    assert choice is not None
    assert choice.alpha is not None
    assert choice.gain_db > 3.0


def test_even_channels_are_left_alone() -> None:
    choice = choose_alpha(_seen(_data()), [_matrix()], CalibrationOptions())
    assert choice is not None
    assert choice.alpha is None
    assert choice.error == choice.error_off
    assert choice.gain_db == 0.0


def test_few_rows_are_not_trusted() -> None:
    """One row per image, as a classifier reads it: their maxima say little of other images."""
    values = RNG.standard_t(4, (16, 1, 64)).astype(np.float32)
    values *= np.exp(RNG.uniform(-0.7, 0.7, 64)).astype(np.float32)
    matrix, options = _matrix(64, 10), CalibrationOptions("minmax")
    rows = values.reshape(-1, 64)
    peaks, of_weights = np.abs(rows).max(axis=0), np.abs(matrix).max(axis=1)
    whole = Half(64, 0)
    whole.maxima = peaks
    judge = Judge(rows, matrix, rows @ matrix)
    believed = {
        alpha: judge.error(whole, smoothing_scale(peaks, of_weights, alpha), options)
        for alpha in (0.3, 0.5, 0.7)
    }
    off = judge.error(whole, np.ones(64, np.float32), options)
    assert min(believed.values()) < 0.8 * off  # the rows that the maxima come from promise a lot
    choice = choose_alpha(_seen(values), [matrix], options)
    assert choice is not None
    assert choice.alpha is None


@given(st.integers(0, 2**16), st.sampled_from(["mse", "minmax"]))
@example(352, "mse")  # its feeds are all of one part
@settings(max_examples=15, deadline=None)
def test_never_worse_than_off(seed: int, method: str) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((8, 20, 16)) * np.exp(rng.uniform(-3, 3, 16))
    matrix = (rng.standard_normal((16, 300)) * np.exp(rng.uniform(-2, 2, (16, 1)))).astype("f4")
    choice = choose_alpha(_seen(values.astype(np.float32)), [matrix], CalibrationOptions(method))
    assert choice is not None
    assert choice.error <= choice.error_off
    assert (choice.alpha is None) == (choice.error == choice.error_off)


def test_one_feed_is_no_ground_for_a_choice() -> None:
    assert choose_alpha(_seen(_data(feeds=1)), [_matrix()], CalibrationOptions()) is None


def test_the_error_is_that_of_the_integers() -> None:
    """Against INT8 arithmetic written out."""
    rows, matrix = _data(1, 40, 16)[0], _matrix(16, 24)
    scale = np.exp(RNG.uniform(-1, 1, 16)).astype(np.float32)
    half = Half(16, 0)
    half.maxima = np.abs(rows).max(axis=0)
    judge = Judge(rows, matrix, rows @ matrix)
    found = judge.error(half, scale, CalibrationOptions("minmax"))
    x, w = (rows / scale).astype(np.float64), (matrix * scale[:, None]).astype(np.float64)
    x_step, w_step = np.abs(x).max() / 127, np.abs(w).max(axis=0) / 127
    integers = np.rint(x / x_step).astype(np.int64) @ np.rint(w / w_step).astype(np.int64)
    expected = np.sum((rows.astype(np.float64) @ matrix - integers * x_step * w_step) ** 2)
    assert found == pytest.approx(expected, rel=1e-3)


def test_zeros_throughout() -> None:
    values = np.zeros((4, 5, 8), np.float32)
    values[:, :, 0] = np.arange(20).reshape(4, 5)
    choice = choose_alpha(_seen(values), [np.zeros((8, 3), np.float32)], CalibrationOptions())
    assert choice is not None
    assert choice.alpha is None
    assert choice.gain_db == 0.0
