"""Layers whose inputs are as large as calibration shows make angles that steps would spoil."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from building import Net, as_model

from fusewright import optimize
from fusewright.plan.decide import Rules, decide
from fusewright.plan.plan import FLOAT
from fusewright.plan.recognise import recognise
from fusewright.quantize.coarse_angles import leave_coarse_angles

RATES = np.exp(-np.log(1e4) * np.arange(16) / 16).astype(np.float32)


def _time_step(net: Net, op: str) -> str:
    """The embedding of a diffusion model's time step, which is fed as a float, and two layers."""
    step = net.input("step", 4, 1)
    if op == "Gemm":
        angle = net.op("Gemm", step, RATES[:, None], np.zeros(16, np.float32), transB=1)
    elif op == "Conv":
        angle = net.op("Conv", net.op("Unsqueeze", step, [2]), RATES[:, None, None])
        angle = net.op("Squeeze", angle, [2])
    else:
        angle = net.op("MatMul", step, RATES[None])
    y = net.op("Concat", net.op("Cos", angle), net.op("Sin", angle), axis=-1)
    for name in ("first", "second"):
        weight = net.random.standard_normal((32, 32)).astype(np.float32) / 6
        y = net.op("Relu", net.op("MatMul", y, weight, name=name))
    return y


@pytest.mark.parametrize("quantized", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("threshold", "asked", "stays"),
    [(1.0, (), True), (1000.0, (), False), (1000.0, ("op:MatMul=int8",), True)],
)
def test_by_the_range(
    threshold: float, asked: tuple[str, ...], stays: bool, quantized: str
) -> None:
    net = Net(19)
    plan, _ = recognise(as_model(net.proto(_time_step(net, "MatMul")), clean=True))
    decide(plan, Rules(quantized=quantized, group_precision=asked))
    made = leave_coarse_angles(plan, {"step": threshold})
    assert bool(made) != stays
    assert all(group.decision == FLOAT and "inputs of 250" in group.reason for group in made)
    quantized_layers = [g for g in plan.groups if g.spec.weights and g.decision != FLOAT]
    assert len(quantized_layers) == 2 + stays


@pytest.mark.parametrize("precision", ["int8+fp16", "fp8+fp16", "int8"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv"])
def test_time_steps_that_are_fed(tmp_path: Path, op: str, precision: str) -> None:
    """7.1 to 8.4 dB with a step of INT8, or of FP8, between frequencies and time."""
    net = Net(19)
    onnx.save(net.proto(_time_step(net, op)), tmp_path / "m.onnx")
    steps = np.random.default_rng(1).integers(0, 1000, (24, 4, 1)).astype(np.float32)
    data = [{"step": step} for step in steps]
    optimize(tmp_path / "m.onnx", tmp_path / "o.onnx", data[:16], precision=precision)
    first, second = (
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        for name in ("m.onnx", "o.onnx")
    )
    for feed in data[16:]:
        (wanted,), (got,) = first.run(None, feed), second.run(None, feed)
        noise = np.square(got - wanted).sum() / np.square(wanted).sum()
        assert -10 * np.log10(noise) > (22 if precision == "fp8+fp16" else 30)
