"""What no calibration sample reaches stays float: a second stage behind boxes that nobody found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from building import Net

from fusewright import optimize
from fusewright.plan.plan import FLOAT

WIDTH = 32
RNG = np.random.default_rng(3)


def _weight(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)


def _second_stage(net: Net, rows: str, kind: str) -> str:
    y = net.op("Relu", net.op("Add", net.op("MatMul", rows, _weight(4, WIDTH)), _weight(WIDTH)))
    if kind == "attention":
        y = net.op("Unsqueeze", y, np.array([0], np.int64))
        heads = [
            net.op(
                "Transpose",
                net.op(
                    "Reshape", net.op("MatMul", y, _weight(WIDTH, WIDTH)), np.array([0, -1, 2, 16])
                ),
                perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3],
            )
            for name in "qkv"
        ]
        scores = net.op("Softmax", net.op("MatMul", *heads[:2]), axis=-1)
        y = net.op("Transpose", net.op("MatMul", scores, heads[2]), perm=[0, 2, 1, 3])
        y = net.op("Reshape", y, np.array([-1, WIDTH]))
    return net.op("MatMul", y, _weight(WIDTH, 8), name="head")


def _two_stages(path: Path, kind: str) -> Path:
    """Rows of a map whose scores pass 0.5 go through a second stage; the scores are fed."""
    net = Net()
    maps = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4, name="first"))
    boxes = net.op("Reshape", maps, np.array([1, 128, 4]))
    scores = net.input("scores", 1, 1, 128)
    found = net.op(
        "NonMaxSuppression",
        boxes,
        scores,
        np.array([20]),
        np.array([1.0], np.float32),
        np.array([0.5], np.float32),
    )
    index = net.op("Gather", found, np.array(2), axis=1)
    rows = net.op("Gather", net.op("Squeeze", boxes, np.array([0])), index, axis=0)
    onnx.save(net.proto(_second_stage(net, rows, kind), boxes), path)
    return path


def _samples(count: int, found_from: int) -> list[dict[str, np.ndarray]]:
    return [
        {
            "x": RNG.standard_normal((1, 4, 8, 8)).astype(np.float32),
            "scores": np.full((1, 1, 128), float(i >= found_from), np.float32),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", ["linear", "attention"])
@pytest.mark.parametrize("precision", ["int8", "int8+fp16", "fp8+fp16", "int4+fp16", "nvfp4+fp16"])
def test_a_stage_that_no_sample_reaches_stays_float(kind, precision, tmp_path):
    path = _two_stages(tmp_path / "two.onnx", kind)
    result = optimize(path, tmp_path / "o.onnx", _samples(5, found_from=5), precision=precision)
    decided = {group.name: group for group in result.plan.groups}
    assert decided["head"].decision == FLOAT
    if precision in ("int8", "int8+fp16", "fp8+fp16"):
        assert decided["first"].decision == precision.split("+")[0]
        assert "is empty on every calibration sample" in decided["head"].reason
        assert any("calibrate on samples that reach it" in note for note in result.notes)
    (feed,) = _samples(1, found_from=0)
    expected, actual = (
        onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, feed)
        for p in (path, tmp_path / "o.onnx")
    )
    for was, now in zip(expected, actual, strict=True):
        assert now.shape == was.shape and was.size
        assert np.linalg.norm(now - was) < 0.1 * np.linalg.norm(was)


@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_the_first_samples_may_be_empty(kind, tmp_path):
    path = _two_stages(tmp_path / "two.onnx", kind)
    result = optimize(path, None, _samples(8, found_from=6), precision="int8")
    assert {group.name: group.decision for group in result.plan.groups}["head"] == "int8"
