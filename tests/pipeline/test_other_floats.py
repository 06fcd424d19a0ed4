"""Models in FP16 and BF16 start in float32, and what cannot is one line; FP64: test_doubles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from building import Net
from building import run as run_proto
from onnx import TensorProto, helper, numpy_helper

from fusewright.calibrate import RandomSamples
from fusewright.errors import DataError, FusewrightError, ModelError
from fusewright.pipeline import compare, inspect, optimize

BF16, FP64, FP32 = TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT
FP16 = TensorProto.FLOAT16


def _conv(kind: int, inside: bool) -> onnx.ModelProto:
    """A Conv of one type, with an interface of it too, or in float32 behind Casts."""
    values = np.random.default_rng(0).standard_normal((4, 3, 3, 3))
    weight = helper.make_tensor("w", kind, values.shape, values.flatten().tolist())
    nodes = [helper.make_node("Conv", ["a", "w"], ["b"], "/stem/Conv")]
    edge = FP32 if inside else kind
    if inside:
        nodes.insert(0, helper.make_node("Cast", ["x"], ["a"], "into", to=kind))
        nodes.append(helper.make_node("Cast", ["b"], ["y"], "back", to=FP32))
    names = ("x", "y") if inside else ("a", "b")
    ends = [
        helper.make_tensor_value_info(name, edge, shape)
        for name, shape in zip(names, (["n", 3, 8, 8], ["n", 4, 6, 6]), strict=True)
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.mark.parametrize(
    ("kind", "inside", "culprit", "runs"),
    [
        (FP64, False, "'a' of node '/stem/Conv' is FP64", [compare]),
        (FP64, True, "'a' of node '/stem/Conv' is FP64", [compare]),
        (BF16, False, "input 'a' is BF16", [compare, optimize]),
    ],
)
def test_the_tensor_is_named(
    kind: int, inside: bool, culprit: str, runs: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_conv(kind, inside), path)
    for run in runs:
        with pytest.raises(FusewrightError) as caught:
            run(path, tmp_path / "out.onnx" if run is optimize else path, RandomSamples(2))
        said = str(caught.value)
        assert culprit in said and said.endswith(": export the model in float32")
        assert "onnxruntime's CPU" in said and "\n" not in said and "ONNXRuntimeError" not in said
        assert isinstance(caught.value, (ModelError, DataError))
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def _net(kind: int) -> onnx.ModelProto:
    """Convolutions and a Linear, stored and computed in one type."""
    net = Net(19)
    x = net.op("Relu", net.conv(net.input("x", "n", 3, 8, 8), 8, 3, name="stem"))
    y = net.op("Add", net.conv(x, 8, 8, name="block"), x)
    y = net.op("ReduceMean", net.op("Relu", y), [2, 3], keepdims=0)
    return _typed(net.proto(net.op("MatMul", y, net.draw(8, 4), name="head")), kind)


def _typed(proto: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """Its floats, and its interface, in another type; in place."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in proto.graph.initializer:
        if tensor.data_type in (FP32, FP16):
            values = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = kind
    del proto.graph.value_info[:]
    return proto


@pytest.mark.parametrize("precision", ["int8+fp16", "int8", "fp16", "fp8+fp16", "fp32"])
def test_a_float16_file_is_quantized_like_its_twin(tmp_path: Path, precision: str) -> None:
    plain, half = tmp_path / "plain.onnx", tmp_path / "half.onnx"
    onnx.save(_net(FP16), half)
    onnx.save(_typed(onnx.load(half), FP32), plain)
    out, data = tmp_path / "o.onnx", RandomSamples(8)
    made = [optimize(file, out, data, precision=precision) for file in (plain, half)]
    lines = [[] if r.placement is None else r.placement.lines() for r in made]
    assert lines[0] == [line.replace("x_float32", "x") for line in lines[1]]
    assert made[0].plan.counts() == made[1].plan.counts()
    written = onnx.load(tmp_path / "o.onnx")
    ends = [v.type.tensor_type.elem_type for v in (*written.graph.input, *written.graph.output)]
    assert ends == [FP16, FP16], "the interface is what it was"
    if precision.endswith("fp16"):
        assert "Cast" not in {node.op_type for node in written.graph.node}
    if precision != "fp32":
        bound = 25 if "8" in precision.split("+")[0] else 50
        assert compare(half, tmp_path / "o.onnx", RandomSamples(8)).worst.sqnr_db > bound
    assert {g.decision for g in inspect(half).groups} == {g.decision for g in inspect(plain).groups}


def test_bfloat16_inside_is_quantized(tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(_conv(BF16, True), path)
    result = optimize(path, out, RandomSamples(4), precision="int8+bf16")
    assert [group.decision for group in result.plan.groups] == ["int8"]
    assert result.accuracy.worst.sqnr_db > 30
    assert compare(path, out, RandomSamples(4)).worst.sqnr_db > 30
    kinds = {tensor.data_type for tensor in onnx.load(out).graph.initializer}
    assert BF16 in kinds


def test_values_are_what_they_were(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_net(FP16), path)
    result = optimize(path, None, RandomSamples(2), precision="fp16", flat=True)
    stored = {t.name: t for t in onnx.load(path).graph.initializer if t.data_type == FP16}
    found = {t.name: t for t in result.model.graph.initializer}
    for name in set(stored) & set(found):
        assert found[name].data_type == FP16
        one, other = (numpy_helper.to_array(t[name]) for t in (stored, found))
        assert np.array_equal(one, other)
    assert len(set(stored) & set(found)) >= 3


def test_beside_bodies_float16_stays_and_a_note_says_so(tmp_path: Path) -> None:
    proto = _net(FP16)
    then = helper.make_graph(
        [helper.make_node("Neg", [proto.graph.output[0].name], ["t"])], "t", [],
        [helper.make_tensor_value_info("t", FP16, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Abs", [proto.graph.output[0].name], ["e"])], "e", [],
        [helper.make_tensor_value_info("e", FP16, None)],
    )  # fmt: skip
    proto.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    branches = {"then_branch": then, "else_branch": other}
    proto.graph.node.append(helper.make_node("If", ["which"], ["z"], **branches))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("z", FP16, None))
    onnx.save(proto, tmp_path / "m.onnx")
    result = optimize(tmp_path / "m.onnx", None, RandomSamples(2))
    (note,) = [note for note in result.notes if "FP16" in note]
    assert (
        note
        == "FP16 tensors beside bodies of If, Loop or Scan stay FP16: nothing of them is quantized"
    )
    assert {group.decision for group in result.plan.groups} == {"float"}


def _bf16(net: Net, value: object) -> str:
    return net.store(value, dtype=ml_dtypes.bfloat16)


BF16_NETS = {
    "Conv": lambda net, x: net.conv(x, 8, 4, dtype=ml_dtypes.bfloat16),
    "Cast": lambda net, x: net.op("Cast", x, to=BF16),
    "relu6": lambda net, x: net.op("Min", net.op("Max", x, _bf16(net, 0)), _bf16(net, 6)),
    "pool": lambda net, x: net.op("ReduceMean", x, [2, 3]),
    "Einsum": lambda net, x: net.op("Einsum", x, x, equation="bchw,bchx->bcwx"),
    "GELU": lambda net, x: net.op("Mul", x, net.op("Add", net.op("Erf", x), _bf16(net, 1))),
    "Attention": lambda net, x: net.op("Attention", x, x, x),
    "norm": lambda net, x: net.op(
        "InstanceNormalization", x, _bf16(net, np.ones(4)), _bf16(net, np.zeros(4))
    ),
}


@pytest.mark.parametrize("name", BF16_NETS)
def test_a_file_with_a_bf16_interface_is_looked_at(name: str, tmp_path: Path) -> None:
    """As `--io-types half` writes it beside a BF16 rest."""
    net = Net(opset=23)
    x = net.input("x", 2, 4, 8, 8, dtype=ml_dtypes.bfloat16)
    onnx.save(net.proto(BF16_NETS[name](net, x)), tmp_path / "m.onnx")
    kinds = [group.kind for group in inspect(tmp_path / "m.onnx").groups]
    expected = {"Conv": ["ConvBN"], "pool": ["AdaptiveAvgPool"]}
    assert kinds == expected.get(name, ["ScaledDotProductAttention"] * (name == "Attention"))


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8+fp16"])
def test_a_stored_tensor_that_is_an_output_of_a_file_in_fp16(
    precision: str, tmp_path: Path
) -> None:
    net = Net()
    weight = net.draw(4, 4, 3, 3, dtype=np.float16)
    x = net.input("x", 2, 4, 8, 8, dtype=np.float16)
    # HardSwish, which onnxruntime has as a function only, takes another road through the cleaner.
    y = net.op("HardSwish", net.op("Conv", x, weight))
    before = net.proto(y, weight)
    onnx.save(before, tmp_path / "m.onnx")
    result = optimize(
        tmp_path / "m.onnx", tmp_path / "o.onnx", RandomSamples(2), precision=precision, strict=True
    )
    feed = {"x": np.ones((2, 4, 8, 8), np.float16)}
    (_, stored), (made, same) = (run_proto(model, feed) for model in (before, result.model))
    assert made.dtype == same.dtype == np.float16
    assert np.array_equal(stored, same)


def test_bf16_beside_a_custom_operator_stays(tmp_path: Path) -> None:
    """Such a file is not taken to float32, so its groups hold BF16 weights."""
    net = Net(opset=22)
    x = net.conv(
        net.input("x", 2, 4, 8, 8, dtype=ml_dtypes.bfloat16), 8, 4, dtype=ml_dtypes.bfloat16
    )
    y = net.op("Frobnicate", x, domain="acme")
    proto = net.proto(x, y)
    proto.graph.output[1].CopyFrom(helper.make_tensor_value_info(y, BF16, [2, 8, 8, 8]))
    onnx.save(proto, tmp_path / "m.onnx")
    (group,) = inspect(tmp_path / "m.onnx").groups
    assert group.decision == "float" and "weights of type bfloat16" in group.reason
