"""Odd graphs go through in every precision: no refusal, nothing undone, right values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from building import Net
from odd_graphs import GRAPHS

from fusewright import optimize

OTHERS = ("int8", "fp8+fp16", "int4+fp16", "int8+bf16", "nvfp4+fp16")
# onnxruntime's CPU has no BF16 pairs, and no NVFP4: those are judged by the verification alone.
RUNS = frozenset({"int8", "int8+fp16", "fp8+fp16", "int4+fp16"})
LEAST = {"nvfp4+fp16": 8.0}
LEVELS = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)
DRAWN = 16


def _feeds(proto: onnx.ModelProto, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        feed = {}
        for value in proto.graph.input:
            shape = [d.dim_value or DRAWN for d in value.type.tensor_type.shape.dim]
            whole = value.type.tensor_type.elem_type == onnx.TensorProto.INT64
            drawn = random.integers(0, 90, shape) if whole else random.standard_normal(shape)
            feed[value.name] = drawn.astype(np.int64 if whole else np.float32)
        feeds.append(feed)
    return feeds


def _run(
    path: Path, feed: dict[str, np.ndarray], level: ort.GraphOptimizationLevel = LEVELS[0]
) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, feed)
    return results


def _sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    error = float(((expected.astype(np.float64) - found) ** 2).sum())
    power = float((expected.astype(np.float64) ** 2).sum())
    return np.inf if error == 0 else 10 * np.log10(power / error) if power else -np.inf


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, "int8+fp16") for name in GRAPHS]
    + [(name, OTHERS[i % len(OTHERS)]) for i, name in enumerate(GRAPHS)],
)
def test_an_odd_graph(name: str, precision: str, tmp_path: Path) -> None:
    net = Net()
    proto = net.proto(*GRAPHS[name](net))
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(proto, path)
    (new,) = _feeds(proto, 1, seed=4)
    target = "tensorrt:sm120" if precision.startswith("nvfp4") else "tensorrt"
    result = optimize(
        path, out, _feeds(proto, 4, seed=3), precision=precision, target=target, strict=True
    )
    assert not result.trace.undone()
    assert result.accuracy is not None
    if precision not in RUNS:
        worst = result.accuracy.worst
        assert worst is None or worst.relative < 10 ** (-LEAST.get(precision, 20.0) / 20)
        return
    expected = _run(path, new)
    for level in LEVELS:
        _run(out, new, level)
    for output, old, found in zip(proto.graph.output, expected, _run(out, new), strict=True):
        if old.dtype.kind == "f":
            assert _sqnr(old, found) > 20, output.name
