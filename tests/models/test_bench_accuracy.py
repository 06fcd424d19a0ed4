"""How `tools/bench_accuracy.py` judges: the count of INT8 nodes and the SQNR."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from bench_accuracy import Digits, count_int8, judge, outputs

HEAD = """<ir_version: 8, opset_import: ["" : 13]>
g (float[1,4,8,8] x, float[4,4,1,1] w) => (float[1,4,8,8] y)
<float s = {0.1}, int8 z = {0}, int8[4,4,1,1] q = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}> {
"""

CASES = {
    "both operands": ("xq = QuantizeLinear(x, s, z) a = DequantizeLinear(xq, s, z)", "a", "d", 1),
    "weight alone": ("", "x", "d", 0),
    "input alone": ("xq = QuantizeLinear(x, s, z) a = DequantizeLinear(xq, s, z)", "a", "w", 0),
    "through a move": (
        "xq = QuantizeLinear(x, s, z) a = DequantizeLinear(xq, s, z) b = Identity(a)",
        "b",
        "d",
        1,
    ),
    "through arithmetic": (
        "xq = QuantizeLinear(x, s, z) a = DequantizeLinear(xq, s, z) b = Relu(a)",
        "b",
        "d",
        0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_count_int8(case: str, tmp_path: Path) -> None:
    before, data, weight, expected = CASES[case]
    text = f"{HEAD} d = DequantizeLinear(q, s, z) {before} y = Conv({data}, {weight}) }}"
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert count_int8(tmp_path / "m.onnx") == (expected, 1)


def test_sqnr_and_score(tmp_path: Path) -> None:
    task = Digits()
    reference = outputs(task, task.model)
    same = judge(task, reference, task.model)
    assert same["sqnr"] == math.inf
    assert same["score"] == pytest.approx(99.6)
    # Noise of a tenth of the signal's amplitude is 20 dB, whatever the signal.
    assert judge(task, reference / 0.9, task.model)["sqnr"] == pytest.approx(20.0)
    assert np.isfinite(reference).all()
