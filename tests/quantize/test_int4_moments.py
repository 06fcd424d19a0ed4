"""Second moments of a Linear's input: close to the exact ones, and the same bits in any order."""

from __future__ import annotations

import numpy as np
import pytest

from fusewright.quantize.int4.statistics import InputStatistics, MomentObserver

CHANNELS = 24


def _rows(spread: float) -> np.ndarray:
    """[400, CHANNELS]: rows that differ in size by up to 2^spread, and one large channel."""
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((400, CHANNELS)) * 2.0 ** rng.uniform(-spread, 0, (400, 1))
    rows[:, 5] *= 60
    rows[17] = 0
    return rows.astype(np.float32)


def _observed(rows: np.ndarray, sizes: list[int]) -> InputStatistics:
    observer, start = MomentObserver(CHANNELS), 0
    for size in sizes:
        observer.update(rows[start : start + size].reshape(1, -1, CHANNELS), "x")
        start += size
    assert start == len(rows)
    return observer.statistics("x")


@pytest.mark.parametrize("spread", [0, 4, 12, 40])
def test_order_and_batching_change_no_bit(spread: float) -> None:
    rows = _rows(spread)
    one = _observed(rows, [400])
    for seed in range(4):
        rng = np.random.default_rng(seed)
        cuts = np.sort(rng.choice(np.arange(1, 400), 9, replace=False))
        sizes = np.diff([0, *cuts, 400]).tolist()
        other = _observed(rows[rng.permutation(400)], sizes)
        assert other.rows == one.rows
        assert np.array_equal(other.mean, one.mean)
        assert np.array_equal(other.moments, one.moments)


def test_sums_of_many_rows_are_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(0)
    whole = _observed(rows, [400])
    monkeypatch.setattr("fusewright.quantize.int4.statistics._CARRY_AFTER", 128)
    carried = _observed(rows, [100] * 4)
    assert np.array_equal(carried.mean, whole.mean)
    assert np.array_equal(carried.moments, whole.moments)


@pytest.mark.parametrize("spread", [0, 4, 12, 40])
def test_moments_are_those_of_the_rows(spread: float) -> None:
    rows = _rows(spread)
    seen, exact = _observed(rows, [100] * 4), rows.astype(np.float64)
    moments = exact.T @ exact / len(rows)
    size = np.sqrt(np.outer(np.diag(moments), np.diag(moments)))
    assert np.abs((seen.moments - moments) / size).max() < 5e-5
    assert np.array_equal(seen.moments, seen.moments.T)
    np.testing.assert_allclose(seen.mean, np.abs(exact).mean(axis=0), rtol=2e-4)
