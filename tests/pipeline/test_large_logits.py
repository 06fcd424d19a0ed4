"""Attention whose logits are so large that rounding q and k is seen in them: it stays float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net, feeds, run

from fusewright import RandomSamples, optimize
from fusewright.pipeline import Result
from fusewright.plan.plan import Group

TOKENS, WIDTH, HEADS, SIZE = 50, 32, 2, 16
CORE, LAYERS = "op:ScaledDotProductAttention", "op:MHAInProjection"
# Of q and k. With √d in front of the Softmax, trained models have logits of about 1.
TRAINED, LARGE = 0.5, 8.0


def _net(factor: float, normed: bool = False) -> Net:
    """Attention without 1/√d; `normed`: q and k have a norm of their own, times `factor`."""
    net = Net(20)
    x = net.input("x", 1, TOKENS, WIDTH)
    q, k, v = (_heads(net, x, name, factor, normed) for name in "qkv")
    p = net.op("Softmax", net.op("MatMul", q, k), axis=-1, name="softmax")
    core = net.op("MatMul", p, v, name="core")
    y = net.op("Reshape", net.op("Transpose", core, perm=[0, 2, 1, 3]), [0, 0, WIDTH])
    net.op("MatMul", y, net.draw(WIDTH, 8), name="out")
    return net


def _heads(net: Net, x: str, name: str, factor: float, normed: bool) -> str:
    by = factor if name in "qk" else 1.0
    weight = net.store(net.random.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH) * by)
    y = net.op("Reshape", net.op("MatMul", x, weight), [0, 0, HEADS, SIZE])
    if normed and name in "qk":
        scale = net.store(np.full(SIZE, by))
        y = net.op("LayerNormalization", y, scale, axis=-1)
    perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
    return net.op("Transpose", y, perm=perm, name=name)


def _written(net: Net, name: str) -> str:
    return next(n.output[0] for n in net.proto().graph.node if n.name == name)


def _model(folder: Path, factor: float, normed: bool = False) -> Path:
    net, path = _net(factor, normed), folder / "attention.onnx"
    onnx.save(net.proto(_written(net, "out")), path)
    return path


def _groups(result: Result, kind: str) -> list[Group]:
    return [group for group in result.plan.groups if f"op:{group.kind}" == kind]


def _decibels(result: Result) -> float:
    return result.accuracy.worst.sqnr_db


@pytest.mark.parametrize("precision", ["int8", "int8+fp16", "fp8+fp16"])
def test_large_logits_stay_float_with_what_makes_them(precision: str, tmp_path: Path) -> None:
    """13 dB and less before, with nothing said."""
    path, data = _model(tmp_path, LARGE), RandomSamples(8)
    settings = {"precision": precision, "target": "sm89"}
    result = optimize(path, None, calibration=data, **settings)
    (core,) = _groups(result, CORE)
    assert core.decision == "float"
    assert "loses its logits" in core.reason
    (made,) = _groups(result, LAYERS)
    assert made.decision == "float"
    assert f"q or k of '{core.name}'" in made.reason
    assert any(group.is_quantized for group in result.plan.groups), "the layer behind stays"
    (note,) = result.notes
    assert note.startswith("1 attentions stay float, and what makes their q and k")
    as_asked = (f"{CORE}={precision.removesuffix('+fp16')}",)
    asked = optimize(path, None, calibration=data, **settings, group_precision=as_asked)
    assert _decibels(result) > _decibels(asked) + 6
    if precision == "int8":
        assert _decibels(result) > 35


def test_layers_in_front_of_a_norm_of_q_and_k_are_as_far_off(tmp_path: Path) -> None:
    path, data = _model(tmp_path, LARGE, normed=True), RandomSamples(8)
    result = optimize(path, None, calibration=data)
    assert not any(g.is_quantized for g in _groups(result, CORE))
    layers = [g for g in result.plan.groups if g.reason.startswith("makes q or k of")]
    assert len(layers) == 2, "v is read as it is"
    alone = optimize(path, None, calibration=data, exclude=(CORE,))
    assert _decibels(result) > _decibels(alone) + 6


@pytest.mark.parametrize("precision", ["int8", "fp8+fp16"])
def test_logits_of_trained_models_are_no_loss(precision: str, tmp_path: Path) -> None:
    path = _model(tmp_path, TRAINED)
    result = optimize(path, None, calibration=RandomSamples(4), precision=precision, target="sm89")
    assert all(g.is_quantized for g in _groups(result, CORE) + _groups(result, LAYERS))
    assert not result.notes


def test_what_is_asked_for_is_done_and_the_loss_is_said(tmp_path: Path) -> None:
    path = _model(tmp_path, LARGE)
    result = optimize(path, None, calibration=RandomSamples(4), group_precision=(f"{CORE}=int8",))
    (core,) = _groups(result, CORE)
    assert core.is_quantized
    (note,) = result.notes
    assert note.startswith("the logits of 1 attentions are large")
    assert f"--exclude '{CORE}'" in note


def test_what_is_measured_is_the_error_of_the_core(tmp_path: Path) -> None:
    net = _net(2.0)
    path, feed = _model(tmp_path, 2.0), feeds(net.proto(_written(net, "out")))
    result = optimize(path, None, calibration=feed)
    (detail,) = [event.detail for event in result.trace if event.name == "logits"]
    names = [_written(net, name) for name in ("q", "k", "v", "core")]
    q, k, v, core = run(net.proto(*names), feed)
    scores = _rounded(q) @ _rounded(k)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    found = p / p.sum(-1, keepdims=True) @ v
    error = np.linalg.norm(found - core) / np.linalg.norm(core)
    assert 0.01 < error < 0.2
    assert f"off by {error:.2%}" in detail


def _rounded(x: np.ndarray) -> np.ndarray:
    step = np.abs(x).max() / 127
    return np.rint(x / step) * step
