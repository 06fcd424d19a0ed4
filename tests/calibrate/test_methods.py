"""Methods against brute force on the raw values."""

from __future__ import annotations

import numpy as np
import pytest

from fusewright.calibrate.methods import (
    ALL_ZERO_THRESHOLD,
    METHODS,
    entropy,
    mse,
    percentile,
    squared_error,
    threshold,
)
from fusewright.calibrate.observers import Histogram, MaxObserver
from fusewright.errors import UsageError

SIZE = 40_000


def _data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(SIZE)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "laplace": rng.laplace(size=SIZE),
        "student-t": rng.standard_t(3, SIZE),
        "lognormal": rng.lognormal(0, 2, SIZE),
        "uniform": rng.random(SIZE),
        "sigmoid": 1 / (1 + np.exp(-3 * normal)),
        "silu": normal / (1 + np.exp(-normal)),
        "relu6": np.clip(3 * normal, 0, 6),
        "outlier": np.append(normal, 40.0),
        "tiny": normal * 1e-12,
        "huge": normal * 1e12,
        "mixture": np.where(rng.random(SIZE) < 0.01, 20 * normal, normal),
    }


DATA = {name: np.abs(values).astype(np.float32) for name, values in _data().items()}


def observed(values: np.ndarray) -> Histogram:
    observer = Histogram()
    observer.update(values)
    return observer


def true_error(magnitude: np.ndarray, clip: float, levels: int) -> float:
    step = clip / levels
    kept = np.minimum(np.rint(magnitude / step), levels) * step
    return float(((magnitude - kept) ** 2).mean())


def brute_mse(magnitude: np.ndarray, levels: int) -> float:
    """Least true error over a fine grid of thresholds: 1/24 octave, then 1/300."""
    top = float(magnitude.max())
    grid = top * 2.0 ** -np.arange(0, 8, 1 / 24)
    errors = [true_error(magnitude, clip, levels) for clip in grid]
    near = grid[int(np.argmin(errors))] * 2.0 ** np.linspace(-1 / 24, 1 / 24, 25)
    return min([*errors, *(true_error(magnitude, min(c, top), levels) for c in near)])


@pytest.mark.parametrize("levels", [127, 7])
@pytest.mark.parametrize("name", DATA)
def test_mse_is_within_one_percent_of_brute_force(name, levels):
    magnitude = DATA[name].astype(np.float64)
    chosen = mse(observed(DATA[name]).bins(), levels)
    assert 0 < chosen <= magnitude.max()
    assert true_error(magnitude, chosen, levels) <= 1.01 * brute_mse(magnitude, levels)


@pytest.mark.parametrize("name", DATA)
def test_integrated_error_is_the_true_error(name):
    magnitude = DATA[name].astype(np.float64)
    clips = magnitude.max() * np.array([1.0, 0.7, 0.4])
    errors = squared_error(observed(DATA[name]).bins(), clips) / magnitude.size
    expected = [true_error(magnitude, clip, 127) for clip in clips]
    np.testing.assert_allclose(errors, expected, rtol=0.02)


@pytest.mark.parametrize("percent", [50.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("name", DATA)
def test_percentile_is_within_a_bin(name, percent):
    values = DATA[name].astype(np.float64)
    chosen = percentile(observed(DATA[name]).bins(), percent)
    ranked = np.sort(values)
    at = percent / 100 * values.size
    low = ranked[max(int(np.floor(at)) - 2, 0)]
    high = ranked[min(int(np.ceil(at)) + 1, values.size - 1)]
    if high == 0:
        assert chosen <= ranked[ranked > 0][0] * (1 + 1 / 128)
    else:
        assert low * (1 - 1 / 128) <= chosen <= max(high, ranked[ranked > 0][0]) * (1 + 1 / 128)


def brute_entropy(magnitude: np.ndarray, levels: int = 128, size: int = 2048) -> np.ndarray:
    """Divergence [size + 1] of every candidate, straight from the definition."""
    counts, _ = np.histogram(magnitude[magnitude > 0], size, (0, magnitude.max()))
    result = np.full(size + 1, np.inf)
    for kept in range(levels, size + 1):
        p = counts[:kept].astype(float)
        p[-1] += counts[kept:].sum()
        bounds = (kept * np.arange(levels + 1) + levels // 2) // levels
        mass = np.add.reduceat(counts[:kept], bounds[:-1])
        filled = np.add.reduceat((p > 0).astype(float), bounds[:-1])
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.repeat(mass / filled, np.diff(bounds)) / counts[:kept].sum()
            p = p / p.sum()
            divergence = np.where(p > 0, p * np.log(p / q), 0).sum()
        result[kept] = divergence if np.isfinite(divergence) else np.inf
    return result


@pytest.mark.parametrize("name", ["normal", "relu", "student-t", "mixture", "uniform", "huge"])
def test_entropy_is_near_the_best_by_definition(name):
    magnitude = DATA[name].astype(np.float64)
    divergences = brute_entropy(magnitude)
    chosen = entropy(observed(DATA[name]).bins())
    index = round(chosen / magnitude.max() * 2048)
    assert 128 <= index <= 2048
    # The histogram's own bins are wider than 1/2048 of the range near the top, where counts are
    # few; measured against the whole span of divergences, the choice is the best.
    finite = divergences[np.isfinite(divergences)]
    span = np.median(finite) - finite.min()
    assert divergences[max(index - 8, 128) : index + 9].min() <= finite.min() + 0.1 * span


def test_entropy_ignores_how_many_zeros_a_relu_adds():
    values = DATA["relu"]
    more = np.concatenate([values, np.zeros(10 * SIZE, np.float32)])
    assert entropy(observed(more).bins()) == entropy(observed(values).bins())


@pytest.mark.parametrize("method", METHODS)
def test_sign_does_not_matter(method):
    values = _data()["laplace"].astype(np.float32)
    assert _threshold(values, method) == _threshold(np.abs(values), method)


def _threshold(values: np.ndarray, method: str) -> float:
    observer = MaxObserver() if method == "minmax" else Histogram()
    observer.update(values)
    return threshold(observer, method)


def test_minmax_is_the_exact_maximum():
    values = DATA["normal"]
    assert _threshold(values, "minmax") == float(values.max())


CORNERS = {
    "zeros": (np.zeros(5), ALL_ZERO_THRESHOLD),
    "one value": (np.array([0.3]), float(np.float32(0.3))),
    "constant": (np.full(9, 2.5), 2.5),
    "a mask": (np.array([0.0, 1.0, 1.0, 0.0]), 1.0),
    "a bin's edge": (np.array([0.25, 0.5, 1.0]), 1.0),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CORNERS)
def test_corners(name, method):
    values, expected = CORNERS[name]
    chosen = _threshold(values.astype(np.float32), method)
    assert chosen == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1e-45, 1e-39, 1e-37, 3e38])
def test_extreme_magnitudes_give_a_normal_scale(value, method):
    chosen = _threshold(np.full(7, value, np.float32), method)
    assert np.isfinite(chosen)
    assert np.float32(chosen / 127) >= np.finfo(np.float32).tiny


def test_wrong_requests():
    with pytest.raises(UsageError, match="no calibration method 'max'"):
        threshold(Histogram(), "max")
    with pytest.raises(UsageError, match="needs a Histogram"):
        threshold(MaxObserver(), "mse")
    for percent in (0.0, 100.1, float("nan")):
        with pytest.raises(UsageError, match="percentile"):
            percentile(observed(np.ones(3)).bins(), percent)
