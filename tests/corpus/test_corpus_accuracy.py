"""The accuracy that the issue asks of the trained convolutional networks, at default settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from fusewright import optimize
from fusewright.graph.session import open_session, run_session

# Least SQNR of the first output in dB, calibration samples, points of the task's score to lose.
FLOORS = {
    "resnet20_cifar10_ts13_bn": (26.0, 128, 1.0),
    "squeezenet10_dc_imagenet_ts13": (22.0, 100, 1.0),
    "rlfn_x4_ts13": (31.0, 16, 0.6),
}


def _outputs(model: Path, task: Any, optimize: bool) -> np.ndarray:
    session = open_session(model, optimize=optimize)
    outputs: np.ndarray = task.outputs(lambda feed: run_session(session, feed))
    return outputs.astype(np.float64)


@pytest.mark.parametrize("name", FLOORS)
def test_floor(
    name: str, tasks: ModuleType, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    floor, samples, loss = FLOORS[name]
    evaluation = tasks.TASKS[name].test()
    task = replace(tasks.TASKS[name], test=lambda: evaluation)  # images are decoded once
    out = tmp_path / "int8.onnx"
    result = optimize(task.model, out, task.calib(), samples=samples)
    assert result.samples == samples
    kept = [row for row in result.heavy_ops() if row["decision"] != "int8"]
    assert not kept, "none of these networks has a grouped convolution"
    heavy = [n for n in onnx.load(task.model).graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(result.heavy_ops()) == len(heavy)
    # Optimizations would change the quantized model; the float one they only make faster.
    expected = _outputs(task.model, task, optimize=True)
    actual = _outputs(out, task, optimize=False)
    sqnr = 10 * np.log10(np.sum(expected**2) / np.sum((expected - actual) ** 2))
    before, after = (task.score(y, evaluation[1]) for y in (expected, actual))
    record_property("sqnr_db", float(sqnr))
    record_property(task.unit, (before, after))
    assert sqnr >= floor
    assert after >= before - loss
