"""Attention whose probabilities are less than a step of the fixed grid: measured, and mended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from building import Net, feeds, run

from fusewright import RandomSamples, inspect, optimize
from fusewright.pipeline import Result
from fusewright.plan.file import write_plan
from fusewright.plan.plan import Group

WIDTH, HEADS, SIZE = 32, 2, 16
# Of q·kᵀ: with 0 every key is as likely as the others, with 4 one or two stand out.
FLAT, SHARP = 0.0, 4.0
CORES = ("op:ScaledDotProductAttention",)


def _net(tokens: int | str, sharpness: float, masked: bool = False) -> Net:
    net = Net(opset=20)
    x = net.input("x", 2, tokens, WIDTH)
    mask = net.input("mask", 2, 1, 1, tokens) if masked else None
    net.op("MatMul", _attend(net, x, sharpness, mask), net.draw(WIDTH, 8), name="out")
    return net


def _attend(net: Net, x: str, sharpness: float, mask: str | None = None) -> str:
    q, k, v = (_heads(net, x, name) for name in "qkv")
    scores = net.op("Mul", net.op("MatMul", q, k), sharpness / WIDTH)
    if mask is not None:
        scores = net.op("Add", scores, mask)
    p = net.op("Softmax", scores, axis=-1, name="softmax")
    core = net.op("MatMul", p, v, name="core")
    return net.op("Reshape", net.op("Transpose", core, perm=[0, 2, 1, 3]), [0, 0, WIDTH])


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


def _core(result: Result) -> Group:
    (core,) = [group for group in result.plan.groups if group.fixed]
    return core


def _float_attention(path: Path) -> float:
    result = optimize(path, None, calibration=RandomSamples(4), exclude=CORES)
    return result.accuracy.worst.sqnr_db


@pytest.mark.parametrize(
    ("tokens", "sharpness", "threshold"),
    [(50, FLAT, 1 / 16), (200, FLAT, 1 / 64), (200, 2.0, 1 / 8), (400, FLAT, 1 / 128)],
)
def test_where_no_key_stands_out_the_steps_are_finer(
    tokens: int, sharpness: float, threshold: float, tmp_path: Path
) -> None:
    """1/200 is 0.64 of a step of 1/127: all of them round to a whole one."""
    path = _model(tmp_path, tokens, sharpness)
    result = optimize(path, None, calibration=RandomSamples(4))
    core = _core(result)
    assert core.is_quantized
    assert core.fixed[0].threshold == threshold
    assert not _warnings(result)
    assert result.accuracy.worst.sqnr_db > _float_attention(path) - 2


def test_the_steps_hold_what_all_samples_show(tmp_path: Path) -> None:
    """The fifth sample is not among the four that are looked at first."""
    tame = [np.random.default_rng(i).standard_normal((2, 200, WIDTH)) for i in range(5)]
    tame[4][:, 0] *= 2
    feed = [{"x": x.astype(np.float32)} for x in tame]
    path = _model(tmp_path, 200, 1.0)
    four, five = (_core(optimize(path, None, calibration=f)) for f in (feed[:4], feed))
    assert four.fixed[0].threshold < five.fixed[0].threshold < 1


def test_where_some_keys_stand_out_and_others_are_lost_it_stays_float(tmp_path: Path) -> None:
    path = _model(tmp_path, 400, SHARP)
    result = optimize(path, None, calibration=RandomSamples(4))
    core = _core(result)
    assert core.decision == "float"
    assert "loses its probabilities" in core.reason
    assert "50%" in core.reason
    (note,) = _warnings(result)
    assert f"--group-precision '{core.name}=int8'" in note
    assert result.accuracy.worst.sqnr_db == _float_attention(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"group_precision": ("op:ScaledDotProductAttention=int8",)},
        {"include": ("*",)},
        {"plan": "plan.yaml"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_is_asked_for_is_done_and_the_loss_is_said(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    path = _model(tmp_path, 400, SHARP)
    if "plan" in settings:
        settings = {"plan": tmp_path / "plan.yaml"}
        plan = inspect(path)
        plan.group("softmax").asked = True
        write_plan(plan, settings["plan"])
    result = optimize(path, None, calibration=RandomSamples(4), **settings)
    core = _core(result)
    assert core.is_quantized
    (note,) = _warnings(result)
    assert core.name in note
    assert "50%" in note
    assert "--exclude 'op:ScaledDotProductAttention'" in note
    assert result.to_dict()["notes"] == [note]
    assert result.accuracy.worst.sqnr_db < 10, "and it shows"


@pytest.mark.parametrize("what", ["masked", "open"])
def test_keys_that_may_be_fewer_elsewhere_get_no_finer_steps(what: str, tmp_path: Path) -> None:
    """Of 8 keys alike each is at 1/8, far above what 200 of them show."""
    net = _net("tokens" if what == "open" else 200, FLAT, masked=what == "masked")
    path = tmp_path / "open.onnx"
    onnx.save(net.proto(_written(net, "out")), path)
    most = (2, 200, WIDTH)
    feed = {"x": np.random.default_rng(0).standard_normal(most).astype(np.float32)}
    settings = {"shapes": {"x": ((2, 1, WIDTH), most, most)}} if what == "open" else {}
    if what == "masked":
        feed["mask"] = np.zeros((2, 1, 1, 200), np.float32)
    result = optimize(path, None, calibration=feed, **settings)
    assert _core(result).decision == "float"
    assert "loses its probabilities" in _core(result).reason


def test_windows_are_attention_too(tmp_path: Path) -> None:
    """MaxViT: 49 keys of a window, 2.6 steps of 1/127 each."""
    net = Net(opset=20)
    cut = net.op("Reshape", net.input("x", 1, 14, 14, WIDTH), [-1, 2, 7, 2, 7, WIDTH])
    windows = net.op("Reshape", net.op("Transpose", cut, perm=[0, 1, 3, 2, 4, 5]), [-1, 49, WIDTH])
    attended = net.op("Reshape", _attend(net, windows, FLAT), [-1, 2, 2, 7, 7, WIDTH])
    whole = net.op("Transpose", attended, perm=[0, 1, 3, 2, 4, 5])
    y = net.op("MatMul", net.op("Reshape", whole, [-1, 14, 14, WIDTH]), net.draw(WIDTH, 8))
    path = tmp_path / "windows.onnx"
    onnx.save(net.proto(y), path)
    result = optimize(path, None, calibration=RandomSamples(4))
    core = _core(result)
    assert core.kind == "SwinAttention"
    assert core.fixed[0].threshold == 1 / 16
    assert result.accuracy.worst.sqnr_db > 30


@pytest.mark.parametrize(
    ("tokens", "sharpness", "settings"),
    [
        (50, SHARP, {}),
        (127, FLAT, {}),
        (200, FLAT, {"precision": "fp8+fp16", "target": "sm89"}),
        (200, FLAT, {"exclude": CORES}),
    ],
    ids=["keys that stand out", "a step each", "steps that grow", "float as asked for"],
)
def test_what_is_no_loss(
    tokens: int, sharpness: float, settings: dict[str, object], tmp_path: Path
) -> None:
    path = _model(tmp_path, tokens, sharpness)
    result = optimize(path, None, calibration=RandomSamples(4), **settings)
    assert _core(result).fixed[0].threshold == 1.0
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
