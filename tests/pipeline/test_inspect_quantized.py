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
    if precision not in ("fp16", "bf16", "fp32"):  # of a float file: those that would be made
        decisions = [Counter(g.decision for g in plan.groups) for plan in (found, made)]
        assert decisions[0] == decisions[1]
    assert not found.unclaimed


@pytest.mark.parametrize("flat", [False, True], ids=["collapsed", "flat"])
def test_several_formats_in_one_file(flat: bool, tmp_path: Path) -> None:
    """Collapsed, the pairs of an attention are in its body, and say their type by a Constant."""
    out, data = tmp_path / "out.onnx", MODELS / "digits_32_calib.npz"
    made = optimize(
        MODELS / "digits_vit.onnx",
        out,
        data,
        precision="fp8+fp16",
        target="rtx:sm89",
        group_precision=("op:ConvBN=int8", "op:LinearAct=int4", "op:Linear=int8"),
        flat=flat,
        samples=4,
        smooth="off",
    ).plan
    expected = Counter((g.kind, g.decision) for g in made.groups)
    assert {decision for _, decision in expected} == {"int8", "fp8", "int4", "float"}
    assert Counter((g.kind, g.decision) for g in inspect(out).groups) == expected


@pytest.mark.parametrize(
    ("inputs", "weight", "decision", "said"),
    [
        (np.int8, np.int8, "int8", "Q/DQ pairs in the file"),
        (np.uint8, np.int8, "int8", "Q/DQ pairs of INT8 and UINT8 in the file"),
        (np.uint8, np.uint8, "int8", "Q/DQ pairs of UINT8 in the file"),
        (np.uint16, np.int8, "int8", "Q/DQ pairs of INT8 and UINT16 in the file"),
    ],
)
def test_types_of_other_tools(
    inputs: type, weight: type, decision: str, said: str, tmp_path: Path
) -> None:
    """onnxruntime's quantizer writes uint8 activations, and uint16 where it is asked to."""
    net, path = Net(21), tmp_path / "net.onnx"
    pair, stored = (np.float32(0.1), inputs(0)), (np.float32(0.1), weight(0))
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", net.input("x", 2, 4), *pair), *pair)
    w = net.op("DequantizeLinear", np.arange(24).astype(weight).reshape(4, 6), *stored)
    onnx.save(net.proto(net.op("MatMul", x, w)), path)
    assert [(g.decision, g.reason) for g in inspect(path).groups] == [(decision, said)]


def test_a_type_that_is_no_format_of_ours(tmp_path: Path) -> None:
    net, path = Net(21), tmp_path / "net.onnx"

    def paired(x: str) -> str:
        pair = np.float32(0.1), np.uint16(0)
        return net.op("DequantizeLinear", net.op("QuantizeLinear", x, *pair), *pair)

    x = net.input("x", 1, 4, 8, 8)
    y = net.op("Add", net.op("Relu", paired(x)), paired(net.op("Sigmoid", x)))
    onnx.save(net.proto(y), path)
    said = "Q/DQ pairs of UINT16 in the file, none of INT8, FP8, INT4, NVFP4, MXFP8"
    assert [(g.decision, g.reason) for g in inspect(path).groups] == [("float", said)]


def test_angles_that_come_from_bf16(tmp_path: Path) -> None:
    """A Cast from a type that NumPy does not have stands behind the input."""
    net = Net(17)
    x = net.op("Sin", net.op("MatMul", net.input("x", 4, 32), net.draw(32, 32)))
    onnx.save(net.proto(net.op("MatMul", x, net.draw(32, 8))), tmp_path / "net.onnx")
    out = tmp_path / "out.onnx"
    settings = {"precision": "bf16", "io_types": "half"}
    optimize(tmp_path / "net.onnx", out, RandomSamples(4), **settings)
    assert inspect(out).groups
