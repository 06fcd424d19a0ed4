"""The quantized digits models are as good at every optimization level of onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from digits import HERE

import fusewright

_DATA = {"digits_cnn": "digits_cnn", "digits_vit": "digits_32", "digits_swin": "digits_32"}
_LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
_CASES = [
    *((name, precision) for name in _DATA for precision in ("int8", "int8+fp16")),
    *(("digits_cnn", precision) for precision in ("fp8", "fp8+fp16")),
    ("digits_swin", "int4+fp16"),
]
_IMAGES, _LOST = 100, 1


def _correct(model: Path, level: str, test: dict[str, np.ndarray]) -> int:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": test["input"][:_IMAGES]})
    return int((logits.argmax(-1) == test["label"][:_IMAGES]).sum())


@pytest.mark.parametrize(("name", "precision"), _CASES)
def test_top1_at_every_level(name: str, precision: str, tmp_path: Path) -> None:
    with np.load(HERE / f"{_DATA[name]}_test.npz") as arrays:
        test = dict(arrays)
    model, out = HERE / f"{name}.onnx", tmp_path / "out.onnx"
    data = HERE / f"{_DATA[name]}_calib.npz"
    fusewright.optimize(model, out, calibration=data, precision=precision, samples=32)
    expected = _correct(model, "ORT_ENABLE_ALL", test) - _LOST
    found = {level: _correct(out, level, test) for level in _LEVELS}
    assert all(correct >= expected for correct in found.values()), (expected, found)
