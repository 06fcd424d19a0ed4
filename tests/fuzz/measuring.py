"""How far a model's outputs are from those of another, at each level of onnxruntime's optimizer."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from recipe import Drawn

Outputs = list[list[np.ndarray]]
LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def open_at(model: bytes, level: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def decibels(drawn: Drawn, expected: Outputs, actual: Outputs) -> float:
    """SQNR of the worst output, over all samples; outputs that jump are left out."""
    worst = np.inf
    for i, value in enumerate(drawn.proto.graph.output):
        pairs = [(a[i], b[i]) for a, b in zip(expected, actual, strict=True)]
        if value.name in drawn.rough or pairs[0][0].dtype.kind != "f":
            continue
        if any(a.shape != b.shape for a, b in pairs):
            return -np.inf
        one, other = (np.concatenate([np.ravel(p[k]) for p in pairs]) for k in (0, 1))
        worst = min(worst, _sqnr(one.astype(np.float64), other.astype(np.float64)))
    return float(worst)


def _sqnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of what is a sum of zero, or nearly, any rounding leaves nothing: there beside 1."""
    noise, signal = float(((a - b) ** 2).sum()), float((a**2).sum())
    if not np.isfinite(noise):
        return -np.inf
    if noise <= 1e-12 * max(a.size, 1):
        return np.inf
    return 10 * float(np.log10((signal if signal > 1e-12 * a.size else a.size) / noise))
