"""NVFP4 and MXFP8 in the pipeline: stored in blocks, measured without TensorRT, seen by inspect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net
from onnx import TensorProto

from fusewright import RandomSamples, apply, compare, inspect, optimize, strip_qdq
from fusewright.errors import ModelError, UsageError
from fusewright.plan.file import write_plan
from fusewright.quantize.blockwise.values import WEIGHT_REACHES, to_blocks
from fusewright.target import FORMATS

WIDTH, HIDDEN = 64, 96
DATA = RandomSamples(8)
CODES = {"nvfp4": TensorProto.FLOAT4E2M1, "mxfp8": TensorProto.FLOAT8E4M3FN}
BLOCK = {"nvfp4": 16, "mxfp8": 32}
RESTS = {"": TensorProto.FLOAT, "+fp16": TensorProto.FLOAT16, "+bf16": TensorProto.BFLOAT16}


def _net() -> onnx.ModelProto:
    """Two Linears on one tensor, one behind them, one whose K is odd, and a conv."""
    net = Net(17)
    x = net.op("Relu", net.conv(net.input("x", "batch", 3, 8, 8), WIDTH, 3, name="conv"))
    x = net.op("Transpose", net.op("Reshape", x, [0, WIDTH, 64]), perm=[0, 2, 1])
    up = net.op("MatMul", x, net.draw(WIDTH, HIDDEN), name="up")
    gate = net.op("MatMul", x, net.draw(WIDTH, HIDDEN), name="gate")
    y = net.op("Mul", up, net.op("Sigmoid", gate))
    y = net.op("MatMul", y, net.draw(HIDDEN, 40), name="down")
    return net.proto(net.op("MatMul", net.op("Relu", y), net.draw(40, 16), name="odd"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(_net(), path)
    return path


def _decisions(plan) -> dict[str, tuple[str, str]]:
    return {group.nodes[0]: (group.decision, group.reason) for group in plan.groups}


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("form", ["nvfp4", "mxfp8"])
def test_what_is_written(path: Path, tmp_path: Path, form: str, rest: str) -> None:
    out = tmp_path / "out.onnx"
    result = optimize(path, out, DATA, precision=f"{form}{rest}")
    decided = _decisions(result.plan)
    assert [decided[name][0] for name in ("up", "gate", "down")] == [form] * 3
    assert decided["odd"] == ("float", f"40 input features, in {FORMATS[form].title} blocks of "
                              f"{BLOCK[form]}")  # fmt: skip
    assert decided["conv"][1] == f"{FORMATS[form].title} is for the weights of Linears"
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    stored = {t.name: t for t in model.graph.initializer}
    codes = [t for t in stored.values() if t.data_type == CODES[form]]
    assert sorted(tuple(t.dims) for t in codes if len(t.dims) == 2 and t.dims[0] > 8) == [
        (WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, 40)
    ]  # fmt: skip
    dynamic = [node for node in model.graph.node if "DynamicQuantize" in node.op_type]
    assert len(dynamic) == 2, "one for the two readers of one tensor, and one"
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 2:
            assert types[node.output[0]] == RESTS[rest]
            whole = stored.get(node.input[1])
            assert whole is None or whole.data_type == RESTS[rest]
    assert result.accuracy is not None
    # Two products of random numbers; a rounding to E4M3 alone is 31.5 dB, to E2M1 20.
    assert (12 if form == "nvfp4" else 22) < result.accuracy.worst.sqnr_db < 60


@pytest.mark.parametrize("form", ["nvfp4", "mxfp8"])
def test_measured_as_numpy_computes_it(tmp_path: Path, form: str) -> None:
    net = Net(17)
    weight = net.draw(WIDTH, HIDDEN)
    onnx.save(net.proto(net.op("MatMul", net.input("x", 50, WIDTH), weight)), tmp_path / "net.onnx")
    x = np.random.default_rng(3).standard_normal((50, WIDTH)).astype(np.float32)
    result = optimize(tmp_path / "net.onnx", tmp_path / "out.onnx", {"x": x}, precision=form)
    rounded = to_blocks(np.ascontiguousarray(x.T), FORMATS[form]).values.T
    stored = net.stored[weight]
    expected, exact = rounded @ to_blocks(stored, FORMATS[form], WEIGHT_REACHES).values, x @ stored
    noise = float(np.linalg.norm(expected - exact) / np.linalg.norm(exact))
    assert result.accuracy.worst.relative == pytest.approx(noise, rel=1e-4)
    again = compare(tmp_path / "net.onnx", tmp_path / "out.onnx", {"x": x}).worst
    assert again.relative == pytest.approx(noise, rel=1e-4)


@pytest.mark.parametrize("rest", ["+fp16", "+bf16"])
@pytest.mark.parametrize("form", ["nvfp4", "mxfp8"])
def test_seen_by_the_other_commands(path: Path, tmp_path: Path, form: str, rest: str) -> None:
    out = tmp_path / "out.onnx"
    result = optimize(path, out, DATA, precision=f"{form}{rest}")
    plan = inspect(out)
    assert {g.nodes[0]: g.decision for g in plan.groups if g.decision != "float"} == {
        "up": form, "gate": form, "down": form
    }  # fmt: skip
    assert not [note for note in plan.model.notes if "custom" in note]
    again = compare(path, out, DATA)
    assert again.worst.sqnr_db == pytest.approx(result.accuracy.worst.sqnr_db, abs=3)
    bare = strip_qdq(out)
    assert not [n.op_type for n in bare.graph.node if "uantize" in n.op_type]
    onnx.save(bare, tmp_path / "bare.onnx")
    rounded = compare(path, tmp_path / "bare.onnx", DATA).worst.sqnr_db
    assert result.accuracy.worst.sqnr_db < rounded < 60, "weights alone are rounded"
    with pytest.raises(ModelError, match="is quantized already"):
        optimize(out, None, DATA)


@pytest.mark.parametrize("precision", ["int8+fp16", "nvfp4", "mxfp8+bf16"])
def test_a_weight_that_is_an_output(tmp_path: Path, precision: str) -> None:
    net = Net(17)
    weight = net.draw(WIDTH, HIDDEN)
    y = net.op("MatMul", net.input("x", 4, WIDTH), weight)
    onnx.save(net.proto(y, weight), tmp_path / "net.onnx")
    result = optimize(tmp_path / "net.onnx", tmp_path / "out.onnx", DATA, precision=precision)
    errors = {output.name: output.relative for output in result.accuracy.outputs}
    assert errors[weight] == 0 and 0.001 < errors[y] < 0.2
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    stored = next(t for t in model.graph.initializer if t.name == weight)
    assert np.array_equal(onnx.numpy_helper.to_array(stored), net.stored[weight])


@pytest.mark.parametrize("form", ["nvfp4", "mxfp8"])
def test_one_block_stays_float(tmp_path: Path, form: str) -> None:
    net = Net(17)
    y = net.op("MatMul", net.input("x", 4, BLOCK[form]), net.draw(BLOCK[form], 24), name="small")
    onnx.save(net.proto(y), tmp_path / "net.onnx")
    decided = _decisions(optimize(tmp_path / "net.onnx", None, DATA, precision=form).plan)
    reason = f"{BLOCK[form]} input features, one {FORMATS[form].title} block: TensorRT asks for two"
    assert decided["small"] == ("float", reason)


def test_a_plan_holds_it(path: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    result = optimize(path, tmp_path / "a.onnx", DATA, precision="nvfp4+fp16")
    write_plan(result.plan, plan)
    apply(result.plan, tmp_path / "b.onnx", DATA)
    first, second = (onnx.load(tmp_path / name).graph for name in ("a.onnx", "b.onnx"))
    assert list(first.node) == list(second.node)
    assert list(first.initializer) == list(second.initializer)


def test_mixed_with_fp8_and_int8(path: Path) -> None:
    asked = ("up=nvfp4", "down=mxfp8", "conv=int8")
    result = optimize(path, None, DATA, precision="fp8+fp16", group_precision=asked)
    decided = {name: found for name, (found, _) in _decisions(result.plan).items()}
    assert [decided[n] for n in ("up", "gate", "down", "conv")] == ["nvfp4", "fp8", "mxfp8", "int8"]
    assert result.accuracy.worst.sqnr_db > 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "h100"}, r"no NVFP4 \(it begins with SM 100\); it has"),
        ({"target": "tensorrt-8.6"}, "has no NVFP4"),
        ({"search": "plan"}, "nvfp4.fp16 has no Q/DQ pairs to place: NVFP4 is"),
        ({"group_precision": ("conv=nvfp4",)}, "is for the weights of Linears"),
        ({"group_precision": ("odd=mxfp8",)}, "40 input features, in MXFP8 blocks of 32"),
    ],
)
def test_refused(path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        optimize(path, None, DATA, precision="nvfp4+fp16", **settings)


def test_the_reason_where_an_engine_restores_it(path: Path) -> None:
    result = optimize(path, None, DATA, precision="mxfp8+fp16", target="rtx:rtx5090")
    note = "TensorRT-RTX on SM 120 restores MXFP8 at run time and multiplies in half"
    assert note in result.plan.model.notes
