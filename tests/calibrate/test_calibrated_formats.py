"""Thresholds by format: what INT8's methods weigh does not hold for FP8."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fusewright.calibrate.methods import METHODS, method_for, mse
from fusewright.calibrate.observers import Histogram, MaxObserver
from fusewright.calibrate.runner import CalibrationOptions, calibrate, observe
from fusewright.target import FORMATS

INT8, FP8 = FORMATS["int8"], FORMATS["fp8"]
RNG = np.random.default_rng(0)
TAILED = RNG.standard_t(3, (4, 50_000)).astype(np.float32)


def _model() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [4, 50_000])],
        [value("y", TensorProto.FLOAT, [4, 50_000])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _sqnr(threshold: float) -> float:
    """Of FP8 rounding with a threshold, in dB."""
    scale = np.float32(threshold / FP8.maximum)
    steps = np.clip(TAILED / scale, -FP8.maximum, FP8.maximum).astype(ml_dtypes.float8_e4m3fn)
    error = TAILED - steps.astype(np.float32) * scale
    return float(10 * np.log10(np.vdot(TAILED, TAILED) / np.vdot(error, error)))


def test_the_maximum_serves_fp8_and_int8s_threshold_does_not() -> None:
    """The figures that `method_for` cites."""
    seen = Histogram()
    seen.update(TAILED)
    largest = float(np.abs(TAILED).max())
    best = max(_sqnr(largest * 2.0**power) for power in np.linspace(-3, 1, 33))
    assert _sqnr(largest) > best - 0.2
    assert _sqnr(mse(seen.bins())) < best - 3.0


@pytest.mark.parametrize("method", METHODS)
def test_method_by_format(method: str) -> None:
    assert method_for(INT8, method) == method
    assert method_for(FP8, method) == ("percentile" if method == "percentile" else "minmax")


@pytest.mark.parametrize("method", ["mse", "entropy", "minmax"])
def test_sites_of_two_formats_in_one_pass(method: str) -> None:
    options = CalibrationOptions(method, formats={"eight": "fp8"})
    sites = {"whole": ["x"], "eight": ["x"], "both": ["x", "y"]}
    ranges = calibrate(_model(), sites, [{"x": TAILED}], options)
    largest = float(np.abs(TAILED).max())
    assert ranges["eight"].threshold == largest
    alone = calibrate(_model(), {"whole": ["x"]}, [{"x": TAILED}], CalibrationOptions(method))
    assert ranges["whole"] == alone["whole"]
    assert (ranges["whole"].threshold < largest) == (method != "minmax")


def test_fp8_needs_no_histogram() -> None:
    options = CalibrationOptions("mse", formats={"eight": "fp8"})
    sites = {"whole": ["x"], "eight": ["x"]}
    seen = observe(_model(), sites, [{"x": TAILED}], options).observers
    assert (type(seen["whole"]), type(seen["eight"])) == (Histogram, MaxObserver)
