"""Blocks, clipping and GPTQ against their definitions, on matrices alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewright.errors import DataError, UsageError
from fusewright.quantize.int4.blocks import (
    BLOCKS,
    BlockWeight,
    check_block,
    choose_block,
    round_to_nearest,
    scales_of,
)
from fusewright.quantize.int4.clipping import clipped_scales, round_clipped
from fusewright.quantize.int4.gptq import gptq, inverse_factor


def _weight(inputs: int = 128, outputs: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, (inputs, outputs)).astype(np.float32)


def _moments(channels: int = 128, seed: int = 1, rank: int = 16) -> np.ndarray:
    """Of correlated channels, some of them far larger than the others."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((512, rank)) @ random.standard_normal((rank, channels))
    rows = (rows + random.standard_normal((512, channels))) * np.exp(
        random.standard_normal(channels)
    )
    return np.asarray(rows.T @ rows / 512, np.float32)


def _error(weight: np.ndarray, rounded: BlockWeight, moments: np.ndarray) -> float:
    difference = weight - rounded.values
    return float(np.vdot(difference, moments @ difference))


@pytest.mark.parametrize(
    ("inputs", "outputs", "wanted", "expected"),
    [
        (768, 3072, 128, 128),
        (768, 3072, 32, 32),
        (192, 64, 128, 64),
        (96, 96, 128, 32),
        (128, 64, 128, 64),
        (64, 64, 64, 32),
        (32, 64, 128, "32 input channels: INT4 needs two blocks of 32 at least"),
        (40, 64, 128, "40 input channels, which is no multiple of 32"),
        (768, 50257, 128, "an odd number of outputs (50257): two INT4 values share a byte"),
    ],
)
def test_the_block_of_a_matrix(inputs: int, outputs: int, wanted: int, expected: int | str) -> None:
    assert choose_block(inputs, outputs, wanted) == expected


@given(st.integers(1, 4096), st.integers(1, 64), st.sampled_from(BLOCKS))
def test_a_block_divides_and_there_are_two(inputs: int, outputs: int, wanted: int) -> None:
    block = choose_block(inputs, outputs, wanted)
    if isinstance(block, int):
        assert block <= wanted and inputs % block == 0 and inputs // block >= 2
    else:
        assert outputs % 2 or inputs % 32 or inputs < 64


def test_a_block_size_that_no_engine_has() -> None:
    with pytest.raises(UsageError, match="INT4 block of 48 channels: choose 32, 64, 128"):
        check_block(48)


@pytest.mark.parametrize("block", BLOCKS)
def test_no_value_is_further_than_half_a_step(block: int) -> None:
    weight = _weight(256)
    rounded = round_to_nearest(weight, block)
    assert rounded.codes.dtype == np.int8 and rounded.block == block
    assert rounded.codes.min() == -8 and rounded.codes.max() == 7
    step = np.repeat(rounded.scales, block, axis=0)
    assert np.all(
        np.abs(weight - rounded.values) <= 0.5 * step * (1 + 1e-5)
    )  # float32 at 7.5 steps


def test_codes_are_given_back() -> None:
    codes = np.random.default_rng(3).integers(-7, 8, (64, 6)).astype(np.float32)
    codes[::32] = 7.5  # what the scale comes from
    rounded = round_to_nearest(codes * 0.25, 32)
    assert np.allclose(rounded.scales, 0.25)
    inside = np.arange(64) % 32 != 0
    assert np.array_equal(rounded.values[inside], codes[inside] * 0.25)


def test_blocks_of_zeros_and_of_tiny_numbers() -> None:
    weight = np.zeros((64, 2), np.float32)
    weight[:32, 1] = 1e-40
    rounded = round_to_nearest(weight, 32)
    assert np.all(rounded.scales >= np.finfo(np.float32).tiny)
    assert np.array_equal(rounded.values[:, 0], np.zeros(64))
    assert np.all(np.abs(rounded.values) < 1e-37)


def test_clipping_is_the_best_of_the_factors_tried() -> None:
    weight, moments = _weight(64, 5), _moments(64)
    found = clipped_scales(weight, moments, 32)
    factors = np.linspace(1.0, 0.5, 11)
    for number, column in itertools.product(range(2), range(5)):
        inside = slice(32 * number, 32 * number + 32)
        part, own = weight[inside, column], moments[inside, inside]
        scales = scales_of(np.abs(part).max() * np.ones(11), factors)
        errors = []
        for scale in scales:
            difference = part - np.clip(np.rint(part / scale), -8, 7) * scale
            errors.append(difference @ own @ difference)
        best = min(errors)
        chosen = errors[int(np.argmin(np.abs(scales - found[number, column])))]
        assert chosen <= best * (1 + 1e-4)


def test_methods_in_their_order() -> None:
    weight, moments = _weight(256), _moments(256)
    for block in BLOCKS:
        plain = _error(weight, round_to_nearest(weight, block), moments)
        clipped = _error(weight, round_clipped(weight, np.diag(np.diag(moments)), block), moments)
        made_up = _error(weight, gptq(weight, moments, block), moments)
        assert clipped < plain
        assert made_up < 0.6 * clipped


def test_the_factor_is_that_of_the_inverse() -> None:
    moments = _moments(150).astype(np.float64)
    factor = inverse_factor(moments, 0.01).astype(np.float64)
    damped = moments + 0.01 * np.mean(np.diag(moments)) * np.eye(150)
    assert np.array_equal(factor, np.triu(factor))
    assert np.allclose(factor.T @ factor @ damped, np.eye(150), atol=1e-4)


def test_gptq_by_the_formula_of_the_paper() -> None:
    """One row at a time, each with an inverse of its own (equations 2 and 3)."""
    weight, moments = _weight(64, 7), _moments(64)
    found = gptq(weight, moments, 32)
    damped = moments + 0.01 * np.mean(np.diag(moments)) * np.eye(64)
    rest = weight.astype(np.float64)
    for i in range(64):
        scale = found.scales[i // 32]
        codes = np.clip(np.rint(rest[i] / scale), -8, 7)
        inverse = np.linalg.inv(damped[i:, i:])
        error = (rest[i] - codes * scale) / inverse[0, 0]
        rest[i:] -= np.outer(inverse[:, 0], error)
        # A value half way between two codes may go either way with its last bit.
        assert np.mean(codes != found.codes[i]) <= 1 / 7
        rest[i] = found.codes[i] * scale


def test_without_correlation_gptq_rounds_to_nearest() -> None:
    weight, moments = _weight(64, 8), np.diag(np.linspace(1, 3, 64).astype(np.float32))
    found = gptq(weight, moments, 32)
    assert np.array_equal(found.codes, np.clip(np.rint(weight / _steps(found)), -8, 7))


def _steps(rounded: BlockWeight) -> np.ndarray:
    return np.repeat(rounded.scales, rounded.block, axis=0)


def test_a_channel_that_is_never_on_is_rounded_too() -> None:
    weight, moments = _weight(64, 8), _moments(64)
    moments[5] = moments[:, 5] = 0.0
    found = gptq(weight, moments, 32)
    assert np.any(found.codes[5])
    reached = np.abs(weight[5]) <= 7.5 * found.scales[0]
    error = np.abs(found.values[5] - weight[5])
    assert reached.any() and np.all(error[reached] <= 0.5 * found.scales[0][reached] * (1 + 1e-5))


def test_zero_moments() -> None:
    weight = _weight(64, 4)
    found = gptq(weight, np.zeros((64, 64), np.float32), 32)
    assert np.all(np.isfinite(found.values)) and np.any(found.codes)


def test_moments_that_are_none() -> None:
    broken = -np.eye(64, dtype=np.float32) * np.linspace(1, 1e6, 64).astype(np.float32)
    with pytest.raises(DataError, match="not positive"):
        gptq(_weight(64, 4), broken, 32)


@given(st.sampled_from([64, 96, 160]), st.integers(1, 9), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_every_method_is_finite_and_repeats(inputs: int, outputs: int, seed: int) -> None:
    weight, moments = _weight(inputs, outputs, seed), _moments(inputs, seed, rank=3)
    for method in (gptq, round_clipped):
        one, other = (method(weight, moments, 32) for _ in range(2))
        assert np.array_equal(one.codes, other.codes)
        assert np.array_equal(one.scales, other.scales)
        assert np.all(one.scales > 0) and np.all(np.isfinite(one.values))
        assert one.codes.min() >= -8 and one.codes.max() <= 7
