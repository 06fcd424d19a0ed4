"""How far two models are apart: the norm, its corner cases, and streaming."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusewright.errors import DataError, ModelError
from fusewright.verify import Comparison, OutputError, Reference, compare_models, compare_outputs


def _compare(expected: list[np.ndarray], actual: list[np.ndarray]) -> OutputError:
    (found,) = compare_outputs(["y"], [[a] for a in expected], [[a] for a in actual]).outputs
    return found


def _floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_error_is_the_norm_of_the_difference_over_the_norm() -> None:
    found = _compare([_floats(3, 4)], [_floats(3, 4.5)])
    assert found.relative == pytest.approx(0.1)
    assert found.sqnr_db == pytest.approx(20)
    assert found.is_float


def test_the_norm_is_over_all_samples_at_once() -> None:
    found = _compare([_floats(3), _floats(4)], [_floats(3), _floats(4.5)])
    assert found.relative == pytest.approx(0.1)


@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e3, 1e3, width=32)),
    st.integers(1, 39),
)
def test_splitting_the_samples_changes_nothing(values: np.ndarray, cut: int) -> None:
    other = values * np.float32(1.01) + np.float32(0.25)
    whole = _compare([values], [other])
    parts = _compare([values[:cut], values[cut:]], [other[:cut], other[cut:]])
    assert parts.relative == pytest.approx(whole.relative, rel=1e-9)


@pytest.mark.parametrize(
    ("difference", "relative"), [(0.0, 0.0), (1e-6, 0.0), (1.1e-6, math.inf), (1.0, math.inf)]
)
def test_a_reference_of_zeros_allows_a_millionth(difference: float, relative: float) -> None:
    assert _compare([np.zeros(1, np.float64)], [np.array([difference])]).relative == relative


def test_zeros_of_many_elements_are_judged_by_their_norm() -> None:
    zeros = np.zeros(400)
    assert _compare([zeros], [zeros + 0.9e-6 / 20]).relative == 0
    assert _compare([zeros], [zeros + 1.1e-6 / 20]).relative == math.inf


def test_infinities_and_nans_of_both_sides_are_no_difference() -> None:
    masked = _floats(-np.inf, np.inf, np.nan, 3, 4)
    found = _compare([masked], [_floats(-np.inf, np.inf, np.nan, 3, 4.5)])
    assert found.relative == pytest.approx(0.1)
    assert _compare([masked], [masked.copy()]).relative == 0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1.0, np.nan),
        (np.nan, 1.0),
        (np.inf, -np.inf),
        (1.0, np.inf),
        (-np.inf, 0.0),
        (np.nan, np.inf),
    ],
)
def test_infinities_and_nans_of_one_side_are_infinitely_far(a: float, b: float) -> None:
    assert _compare([_floats(a, 1)], [_floats(b, 1)]).relative == math.inf
    assert not compare_outputs(["y"], [[_floats(a, 1)]], [[_floats(b, 1)]]).is_within(1e9)


def test_no_overflow_in_float32_squares() -> None:
    found = _compare([_floats(3e30, 4e30)], [_floats(3e30, 4.5e30)])
    assert found.relative == pytest.approx(0.1)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_other_types_must_be_identical(dtype: type) -> None:
    a, b = np.array([0, 1, 1, 0], dtype), np.array([0, 1, 1, 1], dtype)
    found = _compare([a], [b])
    assert (found.relative, found.is_float) == (0.25, False)
    assert not Comparison((found,)).is_within(0.9)
    assert Comparison((_compare([a], [a.copy()]),)).is_within(0.0)


def test_strings_must_be_identical() -> None:
    a, b = np.array(["cat", "dog"], object), np.array(["cat", "cow"], object)
    assert _compare([a], [b]).relative == 0.5
    assert _compare([a], [a.copy()]).relative == 0


def test_float16_is_a_float() -> None:
    found = _compare([np.float16([3, 4])], [np.float16([3, 4.5])])
    assert found.is_float
    assert found.relative == pytest.approx(0.1)


@pytest.mark.parametrize(
    "other", [np.zeros((1, 2), np.float32), np.zeros((1,), np.float32), np.zeros(2, np.float64)]
)
def test_another_shape_or_dtype_is_infinitely_far(other: np.ndarray) -> None:
    assert _compare([np.zeros(2, np.float32)], [other]).relative == math.inf


def test_broken_is_nan_or_inf_where_there_was_a_number() -> None:
    assert _compare([_floats(1, 2)], [_floats(1, np.nan)]).is_broken
    assert _compare([_floats(0, 0)], [_floats(0, -np.inf)]).is_broken
    for first, second in (
        (_floats(0, 0), _floats(0, 1)),  # no relative error, but a number
        (_floats(1, np.nan), _floats(1, 2)),
        (_floats(1, np.inf), _floats(1, np.nan)),
        (_floats(1, 2), _floats(1)),
    ):
        found = _compare([first], [second])
        assert found.relative == math.inf
        assert not found.is_broken


def test_integers_have_no_sqnr() -> None:
    found = _compare([np.array([1, 2, 3, 4])], [np.array([1, 2, 3, 5])])
    assert found.sqnr_db is None
    assert str(found) == "y: 25.00% of elements differ"
    assert str(_compare([_floats(3, 4)], [_floats(3, 4.5)])) == "y: 20.0 dB SQNR"


def test_a_model_that_fails_where_the_original_runs_is_at_fault(tmp_path: Path) -> None:
    good, bad = Net(), Net()
    one = good.proto(good.op("Relu", good.input("x", "n", 4), name="y"))
    two = bad.proto(bad.op("Reshape", bad.input("x", "n", 4), [3, 3], name="y"))
    reference = Reference(one, [{"x": np.ones((2, 4), np.float32)}])
    with pytest.raises(ModelError, match="this model not: onnxruntime fails at node"):
        reference.compare(two)


def test_a_mismatch_of_one_sample_is_not_forgotten() -> None:
    good = _floats(1, 2)
    assert _compare([good, good], [_floats(1), good]).relative == math.inf


def test_an_empty_output_is_equal() -> None:
    assert _compare([np.zeros((0, 4), np.float32)], [np.zeros((0, 4), np.float32)]).relative == 0


def test_worst_output_and_report() -> None:
    comparison = Comparison((OutputError("a", 0.0), OutputError("b", 0.1), OutputError("c", 0.01)))
    assert comparison.worst == comparison.outputs[1]
    assert not comparison.is_within(0.09)
    assert comparison.is_within(0.1)
    report = comparison.to_dict()
    assert report["a"] == {"relative_error": 0.0, "sqnr_db": None}
    assert report["b"]["sqnr_db"] == pytest.approx(20)
    assert Comparison(()).worst is None


def test_sqnr_at_the_ends() -> None:
    assert OutputError("y", 0.0).sqnr_db == math.inf
    assert OutputError("y", math.inf).sqnr_db == -math.inf


def _net(scale: float = 1.0, second: bool = True) -> onnx.ModelProto:
    net = Net()
    x = net.op("Mul", net.input("x", 1, 3), scale, name="first")
    return net.proto(x, *([net.op("ArgMax", x, axis=1, name="second")] if second else []))


def _feeds(count: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal((1, 3)).astype(np.float32)} for _ in range(count)]


def test_reference_compares_every_output() -> None:
    reference = Reference(_net(), _feeds(3))
    same = reference.compare(_net())
    assert [o.name for o in same.outputs] == ["first_y", "second_y"]
    assert same.is_within(0)
    other = reference.compare(_net(1.5))
    assert [o.relative for o in other.outputs] == pytest.approx([0.5, 0])


def test_reference_needs_a_sample() -> None:
    with pytest.raises(DataError, match="no sample"):
        Reference(_net(), [])


def test_reference_does_not_optimize(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimized run would hide what a rewrite does, and has rounding of its own."""
    import onnxruntime as ort

    seen: list[ort.GraphOptimizationLevel] = []
    session = ort.InferenceSession

    def watched(model: object, options: ort.SessionOptions, **how: object) -> ort.InferenceSession:
        seen.append(options.graph_optimization_level)
        return session(model, options, **how)

    monkeypatch.setattr(ort, "InferenceSession", watched)
    Reference(_net(), _feeds(1)).compare(_net())
    assert seen == [ort.GraphOptimizationLevel.ORT_DISABLE_ALL] * 2


def test_compare_models_from_files(tmp_path: Path) -> None:
    for name, scale in (("a.onnx", 1.0), ("b.onnx", 1.5)):
        onnx.save(_net(scale), tmp_path / name)
    comparison, count = compare_models(tmp_path / "a.onnx", tmp_path / "b.onnx", _feeds(5))
    assert count == 5
    assert comparison.outputs[0].relative == pytest.approx(0.5)


def test_compare_models_holds_one_sample_at_a_time() -> None:
    class Array(np.ndarray):
        """Plain arrays take no weak references."""

    alive: list[weakref.ref[Array]] = []
    most = 0

    def stream() -> Iterator[dict[str, np.ndarray]]:
        nonlocal most
        for feed in _feeds(20):
            array = feed.pop("x").view(Array)
            alive.append(weakref.ref(array))
            most = max(most, sum(ref() is not None for ref in alive))
            yield {"x": array}
            del array

    _, count = compare_models(_net(), _net(), stream())
    assert count == 20
    assert most <= 2


def test_compare_models_agrees_with_compare_outputs() -> None:
    feeds = _feeds(7)
    reference = Reference(_net(), feeds).compare(_net(1.01))
    streamed, _ = compare_models(_net(), _net(1.01), iter(feeds))
    assert streamed == reference


def test_compare_models_needs_the_same_outputs() -> None:
    with pytest.raises(ModelError, match="different outputs"):
        compare_models(_net(), _net(second=False), _feeds(1))


def test_compare_models_needs_data() -> None:
    with pytest.raises(DataError, match="no sample"):
        compare_models(_net(), _net(), [])


def test_a_model_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError) as error:
        Reference(path, _feeds(1))
    assert "\n" not in str(error.value)


LOUD = [_floats(3e3, 4e3), _floats(3, 4), _floats(6, 8), _floats(0, 0), _floats()]
ERRORS = [_floats(0, 5), _floats(0, 4), _floats(0, 1), _floats(0, 0), _floats()]


def test_a_loud_sample_does_not_hide_the_others() -> None:
    """Found on an image that was not divided by 255 among others that were: 35 dB, and 5."""
    found = _compare(LOUD, [a + e for a, e in zip(LOUD, ERRORS, strict=True)])
    assert found.sqnr_db > 55
    assert found.samples == pytest.approx((0.001, 0.8, 0.1, 0.0, None))
    assert found.worst_sample == (1, None, pytest.approx(0.8))
    assert found.median == pytest.approx(0.1), "of 0, 0.001, 0.1 and 0.8 the worse middle one"
    assert str(found).endswith("dB SQNR, median 20.0")
    report = found.to_dict()
    assert report["median_sqnr_db"] == pytest.approx(20)
    assert report["worst_sample"] == {
        "sample": 1,
        "relative_error": pytest.approx(0.8),
        "sqnr_db": pytest.approx(1.94, abs=0.01),
    }


def test_a_sample_of_zeros_is_set_against_the_power_of_the_others() -> None:
    """A mask that is empty in one image: a millionth there is no infinite error."""
    found = _compare([_floats(3, 4), _floats(0, 0)], [_floats(3, 4), _floats(0.25, 0)])
    assert found.samples == pytest.approx((0.0, 0.25 / np.sqrt(12.5)))
    assert found.relative == pytest.approx(0.05)


def test_samples_of_unlike_shape_and_of_integers() -> None:
    one, other = np.array([1, 2, 3, 4]), np.array([1, 2])
    found = _compare([one, other], [np.array([1, 2, 3, 5]), other])
    assert (found.samples, found.median, found.worst_sample) == ((0.25, 0.0), 0.25, (0, None, 0.25))
    assert found.to_dict()["worst_sample"] == {"sample": 0, "relative_error": 0.25}
    lost = _compare([_floats(1), _floats(3, 4)], [_floats(1, 2), _floats(3, 4.5)])
    assert lost.samples == (math.inf, pytest.approx(0.1))
    assert lost.relative == math.inf
    empty = _compare([_floats()], [_floats()])
    assert (empty.samples, empty.median, empty.worst_sample) == ((None,), 0.0, None)
    assert OutputError("y", 0.5).median == 0.5, "not known by sample"
