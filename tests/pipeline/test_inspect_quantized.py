"""Decisions found in a quantized file: those of the nodes that read the pairs, not of tensors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net

from fusewright import RandomSamples, inspect, optimize

MODELS = Path(__file__).resolve().parents[2] / "models"


def _depthwise_beside_pointwise(net: Net, x: str) -> str:
    """MobileNetV4, ShuffleNet: a depthwise conv, float, on a tensor that others read in INT8."""
    x = net.op("Relu", net.conv(x, 8, 4))
    sides = net.conv(x, 8, 8, group=8), net.op("Relu", net.conv(x, 8, 8, kernel=1))
    return net.conv(net.op("Concat", *sides, axis=1), 8, 16)


def _act_add_behind_a_move(net: Net, x: str) -> str:
    skip = net.op("MaxPool", net.op("Sigmoid", x), kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Add", net.op("Relu", net.conv(x, 4, 4, strides=[2, 2])), skip)
    return net.conv(y, 4, 4)


@pytest.mark.parametrize("flat", [False, True], ids=["collapsed", "flat"])
@pytest.mark.parametrize("block", [_depthwise_beside_pointwise, _act_add_behind_a_move])
def test_decisions_in_the_file_are_those_made(block, flat: bool, tmp_path: Path) -> None:
    net, source, out = Net(), tmp_path / "net.onnx", tmp_path / "int8.onnx"
    onnx.save(net.proto(block(net, net.input("x", 1, 4, 8, 8))), source)
    made = optimize(source, out, RandomSamples(2), flat=flat).plan
    expected = sorted((g.kind, g.name, g.decision) for g in made.groups)
    assert sorted((g.kind, g.name, g.decision) for g in inspect(out).groups) == expected


def test_gemm_with_a_weight_stored_as_int8(tmp_path: Path) -> None:
    net, path = Net(), tmp_path / "net.onnx"
    pair = np.float32(0.1), np.int8(0)
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", net.input("x", 2, 4), *pair), *pair)
    stored = net.op("DequantizeLinear", np.arange(24, dtype=np.int8).reshape(6, 4), *pair)
    y = net.op("Relu", net.op("Gemm", x, stored, transB=1))
    onnx.save(net.proto(net.op("Gemm", y, net.draw(3, 6), transB=1)), path)
    assert [(g.kind, g.decision) for g in inspect(path).groups] == [
        ("LinearAct", "int8"),
        ("Linear", "float"),
    ]


PRECISIONS = ["int8", "int8+fp16", "int8+bf16", "fp8+fp16", "int4+fp16", "fp16", "bf16", "fp32"]


@pytest.mark.parametrize("flat", [False, True], ids=["collapsed", "flat"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_transformer_of_any_precision_is_read_back(
    precision: str, flat: bool, tmp_path: Path
) -> None:
    """Its Softmax is whole, though onnxruntime has no kernel for it in half."""
    source, out = MODELS / "digits_vit.onnx", tmp_path / "out.onnx"
    data, settings = MODELS / "digits_32_calib.npz", {"samples": 4, "smooth": "off"}
    target = "rtx:sm89" if precision.startswith("fp8") else "tensorrt"
    made = optimize(
        source, out, data, precision=precision, flat=flat, target=target, **settings
    ).plan
    found = inspect(out)
    for kind in ("MHAInProjection", "ScaledDotProductAttention", "LayerNorm"):
        assert found.counts()[kind] == made.counts()[kind]
    if precision != "fp32":  # of a float32 file they are those that would be made
        decisions = [Counter(g.decision for g in plan.groups) for plan in (found, made)]
        assert decisions[0] == decisions[1]
    assert not found.unclaimed
