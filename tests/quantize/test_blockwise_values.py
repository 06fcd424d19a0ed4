"""NVFP4 and MXFP8 by their definitions: every value on the nearest number of its block's grid."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fusewright.quantize.blockwise.values import WEIGHT_REACHES, Blocks, global_scale, to_blocks
from fusewright.target import FORMATS

NVFP4, MXFP8 = FORMATS["nvfp4"], FORMATS["mxfp8"]
# E2M1 has one sign bit, two of exponent and one of mantissa; E4M3 has 126 positive numbers.
FP4_GRID = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FP8_GRID = np.array(
    [m * 2.0**-9 for m in range(8)]
    + [(8 + m) / 8 * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
)


def _values(rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(0)
    spread = np.exp2(random.uniform(-6, 3, (rows, columns)))
    return (random.standard_normal((rows, columns)) * spread).astype(np.float32)


def _nearest(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Distance to the nearest number of the grid, in either sign."""
    return np.abs(np.abs(values)[..., None] - grid).min(-1)


def test_grids() -> None:
    assert FP8_GRID.max() == 448 and len(FP8_GRID) == 127
    for grid, dtype in ((FP4_GRID, NVFP4.dtype), (FP8_GRID, MXFP8.dtype)):
        assert np.array_equal(grid.astype(dtype).astype(np.float64), grid)


def test_nvfp4_is_the_nearest_of_its_grid() -> None:
    values = _values(64, 24)
    found = to_blocks(values, NVFP4)
    assert found.codes.shape == (64, 24) and found.scales.shape == (4, 24)
    steps = np.repeat(found.scales.astype(np.float64) * found.scale, 16, axis=0)
    error = np.abs(found.values - values)
    # What is scaled beyond 6 saturates there; the FP8 scale may be a sixteenth too small.
    inside = np.minimum(np.abs(values), 6 * steps)
    expected = _nearest(inside / steps, FP4_GRID) * steps + (np.abs(values) - inside)
    assert np.allclose(error, expected, atol=1e-6 * steps)
    peaks = np.abs(values).reshape(4, 16, 24).max(1)
    scales = found.scales.astype(np.float64) * found.scale
    assert np.all(np.abs(scales / (peaks / 6) - 1) <= 1 / 16)


def test_mxfp8_is_the_nearest_of_its_grid() -> None:
    values = _values(96, 10)
    found = to_blocks(values, MXFP8)
    assert found.codes.shape == (96, 10) and found.scales.shape == (3, 10)
    assert found.scales.dtype == np.uint8
    steps = np.repeat(np.exp2(found.scales.astype(np.float64) - 127), 32, axis=0)
    error = np.abs(found.values - values)
    assert np.allclose(error, _nearest(values / steps, FP8_GRID) * steps, atol=1e-6 * steps)


@pytest.mark.parametrize("peak", [448.0, 448.1, 447.9, 1.75, 1.0, 3e-5, 2.0**-120, 1e38])
def test_mxfp8_scale_is_the_smallest_that_holds(peak: float) -> None:
    values = np.full((32, 1), peak, np.float32)
    exponent = float(to_blocks(values, MXFP8).scales[0, 0]) - 127
    assert np.float32(peak) <= 448 * 2.0**exponent
    assert np.float32(peak) > 448 * 2.0 ** (exponent - 1) or exponent == -126


@pytest.mark.parametrize("factor", [1e30, 1e-25])
def test_the_better_reach_of_large_and_small_values(factor: float) -> None:
    """Their squares are beyond float32."""
    values, scale = _values(64, 24), np.float32(2.0 ** np.round(np.log2(factor)))
    plain = to_blocks(values, NVFP4, WEIGHT_REACHES)
    with np.errstate(all="raise"):
        found = to_blocks(values * scale, NVFP4, WEIGHT_REACHES)
    assert np.array_equal(found.values, plain.values * scale)


@pytest.mark.parametrize("form", [NVFP4, MXFP8], ids=lambda f: f.name)
def test_zeros(form) -> None:
    values = _values(64, 4)
    values[:32] = 0.0
    restored = to_blocks(values, form).values
    assert not restored[:32].any() and np.isfinite(restored).all()
    assert not to_blocks(np.zeros((32, 2), np.float32), form).values.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("largest", [0.0, 1e-9, 0.02, 0.5, 1.0, 2688.0, 5000.0])
def test_global_scale(largest: float, dtype: type) -> None:
    scale = global_scale(largest, np.dtype(dtype))
    assert scale.dtype == dtype and scale.shape == ()
    value = float(scale)
    mantissa, _ = np.frexp(value)
    assert mantissa == 0.5, "a power of two"
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    assert value >= smallest and value * 2688 >= largest
    assert value < 2 * largest / 2688 or value == smallest


def test_a_block_of_its_own_numbers_is_exact() -> None:
    column = np.array([*FP4_GRID, *-FP4_GRID], np.float32)[:, None] / 64
    found = to_blocks(column, NVFP4)
    assert np.array_equal(found.values, column)


def test_blocks_run_along_the_rows() -> None:
    codes = np.ones((32, 2), NVFP4.dtype)
    scales = np.array([[1, 2], [4, 8]], np.float32).astype(ml_dtypes.float8_e4m3fn)
    values = Blocks(codes, scales, 0.5).values
    assert values[0].tolist() == [0.5, 1.0] and values[16].tolist() == [2.0, 4.0]


def test_each_block_takes_the_better_reach() -> None:
    values = np.random.default_rng(2).standard_normal((256, 64)).astype(np.float32)
    errors = {
        reaches: ((to_blocks(values, NVFP4, reaches).values - values) ** 2)
        .reshape(16, 16, 64)
        .sum(1)
        for reaches in (WEIGHT_REACHES, (6.0,), (4.0,))
    }
    assert np.array_equal(errors[WEIGHT_REACHES], np.minimum(errors[6.0,], errors[4.0,]))
    gain = errors[6.0,].sum() / errors[WEIGHT_REACHES].sum()
    assert 1.15 < gain < 1.3, "0.8 dB"
