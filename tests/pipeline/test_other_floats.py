"""Models in BF16 and FP64, which onnxruntime's CPU runs in part: one line says what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusewright.calibrate import RandomSamples
from fusewright.errors import DataError, FusewrightError, ModelError
from fusewright.pipeline import compare, optimize

BF16, FP64, FP32 = TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT


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
    ("kind", "inside", "culprit"),
    [
        (FP64, False, "'a' of node '/stem/Conv' is FP64"),
        (FP64, True, "'a' of node '/stem/Conv' is FP64"),
        (BF16, True, "'a' of node '/stem/Conv' is BF16"),
        (BF16, False, "input 'a' is BF16"),
    ],
)
def test_the_tensor_is_named(kind: int, inside: bool, culprit: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_conv(kind, inside), path)
    for run in (
        lambda: optimize(path, tmp_path / "out.onnx", RandomSamples(2)),
        lambda: compare(path, path, RandomSamples(2)),
    ):
        with pytest.raises(FusewrightError) as caught:
            run()
        said = str(caught.value)
        assert culprit in said and said.endswith(": export the model in float32")
        assert "onnxruntime's CPU" in said and "\n" not in said and "ONNXRuntimeError" not in said
        assert isinstance(caught.value, (ModelError, DataError))
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_a_part_in_fp64_that_onnxruntime_runs_is_taken(tmp_path: Path) -> None:
    """Positions that are computed in FP64, as TensorFlow does."""
    weight = numpy_helper.from_array(np.eye(4), "w")
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], "into", to=FP64),
        helper.make_node("MatMul", ["a", "w"], ["b"], "turn"),
        helper.make_node("Cast", ["b"], ["y"], "back", to=FP32),
    ]
    ends = [helper.make_tensor_value_info(name, FP32, [2, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    result = optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", RandomSamples(2))
    assert [group.reason for group in result.plan.groups] == [
        "weights of type float64; INT8 here starts from float32"
    ]
