"""The stage precision: what is not quantized becomes half, and the report says what did not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from building import Net
from onnx import TensorProto

from fusewright import RandomSamples, apply, inspect, optimize
from fusewright.errors import UsageError, VerifyError
from fusewright.pipeline import Result
from fusewright.plan.file import write_plan

DATA = RandomSamples(6)
MODELS = Path(__file__).resolve().parents[2] / "models"


def _net(factor: float = 1.0) -> onnx.ModelProto:
    """A residual of convolutions, whose middle is `factor` times as large as its ends."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", "batch", 4, 8, 8), 8, 4))
    x = net.op("Mul", x, net.store(np.full(1, factor, np.float32)))
    y = net.op("Sigmoid", net.op("Mul", x, net.store(np.full(1, 1 / factor, np.float32))))
    y = net.op("GlobalAveragePool", net.op("Add", net.conv(y, 8, 8), y))
    return net.proto(net.op("Gemm", net.op("Flatten", y), net.draw(8, 5), net.draw(5), name="head"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(_net(), path)
    return path


def _types(proto: onnx.ModelProto) -> Counter[int]:
    return Counter(tensor.data_type for tensor in proto.graph.initializer)


def _stages(result: Result) -> list[str]:
    return [event.stage for event in result.trace if event.what == "pass" and not event.name]


@pytest.mark.parametrize(
    ("precision", "stored"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)]
)
def test_a_half_file(path: Path, precision: str, stored: int) -> None:
    result = optimize(path, None, DATA, precision=precision)
    assert "QuantizeLinear" not in {node.op_type for node in result.model.graph.node}
    assert result.placement is None
    assert result.ranges is None
    assert set(_types(result.model)) <= {stored, TensorProto.INT64}
    assert result.accuracy is not None
    worst = result.accuracy.worst
    assert worst is not None
    assert 20 < worst.sqnr_db < 100, "rounded, and not by more than its type"
    interface = [*result.model.graph.input, *result.model.graph.output]
    assert {v.type.tensor_type.elem_type for v in interface} == {TensorProto.FLOAT}
    assert result.samples == 6
    assert "precision" in _stages(result)


def test_quantized_with_a_half_rest(path: Path) -> None:
    plain = optimize(path, None, DATA, precision="int8")
    half = optimize(path, None, DATA, precision="int8+fp16")
    assert half.placement is not None
    assert plain.placement is not None
    assert half.placement.lines() == plain.placement.lines()
    assert _stages(half).index("quantize") + 1 == _stages(half).index("precision")
    assert half.accuracy is not None
    assert plain.accuracy is not None
    difference = half.accuracy.worst.sqnr_db - plain.accuracy.worst.sqnr_db
    assert abs(difference) < 1.0, "half adds little to what INT8 costs"


def test_onnxruntime_runs_it(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    optimize(path, out, DATA, precision="int8+fp16")
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((3, 4, 8, 8), np.float32)
    (found,) = session.run(None, {"x": x})
    (expected,) = ort.InferenceSession(str(path)).run(None, {"x": x})
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def test_what_would_overflow_stays_float32(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(_net(1e6), path)
    result = optimize(path, None, DATA, precision="fp16")
    assert result.half is not None
    assert result.half.float_nodes
    assert result.half.half_nodes
    assert result.to_dict()["half"]["float_nodes"] == dict(result.half.float_nodes)
    assert result.accuracy is not None
    assert result.accuracy.worst.relative < 1e-2


def test_int8_attention_is_float32_between_its_pairs(tmp_path: Path) -> None:
    """In a BF16 rest, without a Cast: the scales of its pairs say where the type changes."""
    data = MODELS / "digits_32_calib.npz"
    settings = {"precision": "int8+bf16", "samples": 4, "flat": True}
    result = optimize(MODELS / "digits_vit.onnx", None, data, **settings)
    graph = gs.import_onnx(result.model)
    products = [n for n in graph.nodes if n.op == "MatMul" and n.i(0).op == "DequantizeLinear"]
    softmaxes = [n for n in graph.nodes if n.op == "Softmax"]
    assert len(softmaxes) == 4
    for softmax in softmaxes:
        behind = softmax.o().o()
        assert softmax.o().inputs[1].dtype == behind.inputs[1].dtype == np.float32
        assert behind.o() in products
    assert Counter(n.outputs[0].dtype == np.float32 for n in graph.nodes if n.op == "Cast") == {
        True: 1
    }  # the model's output
    reasons = [event.detail for event in result.trace if event.stage == "precision"]
    assert sum("fuses no INT8 attention with BF16" in reason for reason in reasons) >= 12


def test_around_a_sequence(tmp_path: Path) -> None:
    net, path = Net(), tmp_path / "sequence.onnx"
    parts = net.op("SplitToSequence", net.conv(net.input("x", 2, 4, 8, 8), 8, 4), axis=1)
    y = net.op("ConcatFromSequence", parts, axis=1)
    onnx.save(net.proto(net.conv(y, 8, 8)), path)
    result = optimize(path, None, DATA)
    assert result.placement is not None
    assert len(result.placement.weights) == 2
    assert result.half is not None
    assert result.half.half_nodes
    assert result.accuracy is not None
    assert result.accuracy.worst.sqnr_db > 30


def test_a_rewritten_mask_is_no_node_kept_float32(tmp_path: Path) -> None:
    net = Net()
    mask = np.triu(np.full((6, 6), -1e9, np.float32), 1)
    x = net.op("MatMul", net.input("x", 2, 6, 6), net.draw(6, 6))
    path = tmp_path / "masked.onnx"
    onnx.save(net.proto(net.op("Softmax", net.op("Add", x, mask, name="masked"), axis=-1)), path)
    result = optimize(path, None, DATA, precision="fp16")
    assert result.half is not None
    assert list(result.half.rewritten()) == ["masked:1"]
    notes = [event for event in result.trace if (event.stage, event.what) == ("precision", "note")]
    (event,) = [event for event in notes if event.where == "masked:1"]
    assert event.name == "rewrite" and "Softmax" in event.detail
    kept = [event.where for event in notes if event.name == "fp32"]
    assert kept == list(result.half.float_nodes)
    assert result.overflows == ()


@pytest.mark.parametrize("how", ["file", "object"])
@pytest.mark.parametrize(
    ("precision", "stored"), [("int8", TensorProto.FLOAT), ("int8+bf16", TensorProto.BFLOAT16)]
)
def test_a_plan_brings_its_precision(
    path: Path, tmp_path: Path, how: str, precision: str, stored: int
) -> None:
    plan = inspect(path, precision=precision)
    if how == "file":
        write_plan(plan, tmp_path / "plan.yaml")
        result = optimize(path, None, DATA, plan=tmp_path / "plan.yaml")
    else:
        result = apply(plan, None, DATA)
    assert result.plan.precision == precision
    assert _types(result.model)[stored] > 4
    assert result.placement is not None


@pytest.mark.parametrize("precision", ["int8+fp16", "int8+bf16"])
def test_a_padded_shortcut_stays_in_int8(tmp_path: Path, precision: str) -> None:
    """A resnet20 of CIFAR: its shortcut pads the channels, with a zero in the rest's type."""
    net, path = Net(), tmp_path / "shortcut.onnx"
    x = net.op("Relu", net.conv(net.input("x", 2, 4, 8, 8), 8, 4))
    pads = net.store([0, 4, 0, 0, 0, 4, 0, 0], dtype=np.int64)
    padded = net.op("Pad", x, pads, net.store(0.0))
    y = net.op("Relu", net.op("Add", net.conv(x, 16, 8), padded))
    onnx.save(net.proto(net.conv(y, 8, 16)), path)
    result = optimize(path, None, DATA, precision=precision)
    assert result.placement is not None
    assert len(result.placement.activations) == 3


def test_half_that_cannot_hold_an_output_is_told(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.op("MatMul", net.input("x", 2, 8), net.draw(8, 8)))
    large = net.op("Mul", x, np.full(8, 1e5, np.float32))
    onnx.save(net.proto(large, net.op("MatMul", x, net.draw(8, 8))), tmp_path / "m.onnx")
    data = {"x": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}
    with pytest.raises(VerifyError, match="no longer finite in FP16, which --io-types asks for"):
        optimize(tmp_path / "m.onnx", None, data, precision="fp16", io_types="half")
    assert optimize(tmp_path / "m.onnx", None, data, precision="fp16").accuracy is not None


def test_half_interface(path: Path) -> None:
    result = optimize(path, None, DATA, precision="fp16", io_types="half")
    interface = [*result.model.graph.input, *result.model.graph.output]
    assert {v.type.tensor_type.elem_type for v in interface} == {TensorProto.FLOAT16}
    assert result.accuracy is not None
    assert result.accuracy.worst.relative < 1e-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"io_types": "double"}, "io types 'double' are not one of keep, half"),
        ({"io_types": "half", "precision": "int8"}, "precision int8 has nothing in half"),
        ({"precision": "int9"}, "precision 'int9' is not one of"),
    ],
)
def test_refused(path: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        optimize(path, None, DATA, **settings)


def test_the_opset_that_half_scales_need(path: Path) -> None:
    for precision, least in (("int8", 13), ("fp16", 13), ("int8+fp16", 19)):
        result = optimize(path, None, DATA, precision=precision)
        assert result.plan.model.opset >= least


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8+fp16", "int8+bf16"])
@pytest.mark.parametrize("flat", [False, True], ids=["collapsed", "flat"])
def test_what_was_written_can_be_inspected(
    path: Path, tmp_path: Path, precision: str, flat: bool
) -> None:
    out = tmp_path / "out.onnx"
    result = optimize(path, out, DATA, precision=precision, flat=flat)
    plan = inspect(out)
    assert plan.counts() == result.plan.counts()
    # Of a file without pairs the decisions are those that would be made.
    made = result.plan if "+" in precision else inspect(path)
    assert {g.name: g.is_quantized for g in plan.groups} == {
        g.name: g.is_quantized for g in made.groups
    }
