"""Attention whose probabilities are less than a step of the fixed grid: measured, and said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net, feeds, run

from fusewright import RandomSamples, optimize
from fusewright.pipeline import Result

WIDTH, HEADS, SIZE = 32, 2, 16
# Of q·kᵀ: with 0 every key is as likely as the others, with 4 one or two stand out.
FLAT, SHARP = 0.0, 4.0


def _net(tokens: int, sharpness: float) -> Net:
    net = Net(opset=20)
    x = net.input("x", 2, tokens, WIDTH)
    q, k, v = (_heads(net, x, name) for name in "qkv")
    scores = net.op("Mul", net.op("MatMul", q, k), sharpness / WIDTH)
    p = net.op("Softmax", scores, axis=-1, name="softmax")
    core = net.op("MatMul", p, v, name="core")
    merged = net.op("Reshape", net.op("Transpose", core, perm=[0, 2, 1, 3]), [0, 0, WIDTH])
    net.op("MatMul", merged, net.draw(WIDTH, 8), name="out")
    return net


def _heads(net: Net, x: str, name: str) -> str:
    y = net.op("Add", net.op("MatMul", x, net.draw(WIDTH, WIDTH)), net.draw(WIDTH))
    perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
    return net.op("Transpose", net.op("Reshape", y, [0, 0, HEADS, SIZE]), perm=perm, name=name)


def _model(folder: Path, tokens: int, sharpness: float) -> Path:
    net, path = _net(tokens, sharpness), folder / "attention.onnx"
    onnx.save(net.proto(_written(net, "out")), path)
    return path


def _written(net: Net, name: str) -> str:
    return next(n.output[0] for n in net.proto().graph.node if n.name == name)


def _measured(result: Result) -> list[str]:
    return [event.detail for event in result.trace if event.name == "probabilities"]


def _warnings(result: Result) -> list[str]:
    return [note for note in result.notes if "probabilities" in note]


def test_many_keys_alike_are_a_warning(tmp_path: Path) -> None:
    """1/200 is 0.64 of a step: all of them round to a whole one."""
    result = optimize(_model(tmp_path, 200, FLAT), None, calibration=RandomSamples(4))
    (core,) = [group for group in result.plan.groups if group.fixed]
    assert core.is_quantized, "the rules decide, not the data"
    (note,) = _warnings(result)
    assert core.name in note
    assert "57%" in note, "(200 - 127) / 127"
    assert "--exclude 'op:ScaledDotProductAttention'" in note
    assert result.to_dict()["notes"] == [note]
    assert result.accuracy.worst.sqnr_db < 10, "and it shows"


@pytest.mark.parametrize(
    ("tokens", "sharpness", "settings"),
    [
        (200, SHARP, {}),
        (127, FLAT, {}),
        (200, FLAT, {"precision": "fp8+fp16", "target": "sm89"}),
        (200, FLAT, {"exclude": ("op:ScaledDotProductAttention",)}),
    ],
    ids=["keys that stand out", "a step each", "steps that grow", "float as advised"],
)
def test_what_is_no_loss(
    tokens: int, sharpness: float, settings: dict[str, object], tmp_path: Path
) -> None:
    path = _model(tmp_path, tokens, sharpness)
    result = optimize(path, None, calibration=RandomSamples(4), **settings)
    assert result.plan.counts()["ScaledDotProductAttention"] == 1
    assert not _warnings(result)
    assert result.accuracy.worst.sqnr_db > 15


def test_what_is_measured_is_the_error_of_the_core(tmp_path: Path) -> None:
    path, net = _model(tmp_path, 60, 1.0), _net(60, 1.0)
    feed = feeds(net.proto(_written(net, "out")))
    result = optimize(path, None, calibration=feed)
    (detail,) = _measured(result)
    p, v, core = run(net.proto(*(_written(net, name) for name in ("softmax", "v", "core"))), feed)
    error = np.linalg.norm((np.rint(p * 127) / 127 - p) @ v) / np.linalg.norm(core)
    assert 0.01 < error < 0.3
    assert f"off by {error:.2%}" in detail


def test_a_trained_vit_loses_nothing(corpus: Path) -> None:
    with np.load(corpus / "data" / "mnist.npz") as data:
        images = ((data["x_calib"][:8].astype(np.float32) / 255 - 0.1307) / 0.3081)[:, None]
    result = optimize(corpus / "onnx" / "vit_mnist_ts13.onnx", None, calibration={"input": images})
    cores = [group for group in result.plan.groups if group.fixed]
    assert len(cores) == len(_measured(result)) == 6
    assert all(group.is_quantized for group in cores)
    assert not _warnings(result)
