"""Proof by regions: what it accepts, what it finds, and that the pipeline goes by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from building import Net, as_model

from fusewright import RandomSamples, optimize
from fusewright.errors import ModelError
from fusewright.graph.convert import to_proto
from fusewright.match.matcher import Match
from fusewright.match.pattern import const, op, optional, var
from fusewright.normalize import RULES, normalize
from fusewright.normalize.rule import Edit, Rule
from fusewright.pipeline import run
from fusewright.plan.collapse import collapse
from fusewright.plan.recognise import recognise
from fusewright.verify import compare_by_regions
from fusewright.verify.side import Side
from fusewright.verify.statement import Draft

TOLERANCE = 1e-5


def _chain(triples: int = 6) -> onnx.ModelProto:
    net = Net()
    y = net.input("x", "n", 4, 8, 8)
    for _ in range(triples):
        y = net.op("Relu", net.batchnorm(net.conv(y, 4, 4), 4))
    return net.proto(y)


def _shaped(proto: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(proto)


def _normalized() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = as_model(_chain())
    before = to_proto(model.graph)
    normalize(model)
    return _shaped(before), to_proto(model.graph)


def _worst(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    worst = compare_by_regions(before, after).worst
    assert worst is not None
    return worst.relative


def _change(proto: onnx.ModelProto, edit: Callable[[onnx.GraphProto], None]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    edit(copy.graph)
    return copy


def _scale_first_weight(graph: onnx.GraphProto) -> None:
    tensor = next(t for t in graph.initializer if len(t.dims) == 4)
    array = onnx.numpy_helper.to_array(tensor) * np.float32(1.001)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _other_operator(graph: onnx.GraphProto) -> None:
    next(n for n in graph.node if n.op_type == "Relu").op_type = "Sigmoid"


def _other_attribute(graph: onnx.GraphProto) -> None:
    node = next(n for n in graph.node if n.op_type == "Conv")
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
    node.attribute.append(onnx.helper.make_attribute("strides", [2, 2]))


def test_folding_holds() -> None:
    before, after = _normalized()
    assert [n.op_type for n in after.graph.node].count("BatchNormalization") == 0
    assert 0 < _worst(before, after) <= TOLERANCE


def test_collapsing_holds_and_is_one_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    model = as_model(_chain())
    normalize(model)
    plan, _ = recognise(model)
    made: list[object] = []
    statement = Draft.statement
    monkeypatch.setattr(Draft, "statement", lambda self: made.append(1) or statement(self))
    before = _shaped(to_proto(model.graph))
    assert _worst(before, to_proto(collapse(model.graph, plan))) <= TOLERANCE
    assert len(plan.groups) == 6
    # One structure; its first region is proven, the others are that statement again.
    assert len(made) == 1


def test_equal_models_have_nothing_to_prove() -> None:
    before, _ = _normalized()
    found = compare_by_regions(before, before)
    assert [(o.name, o.relative) for o in found.outputs] == [("nothing changed", 0.0)]


@pytest.mark.parametrize("edit", [_scale_first_weight, _other_operator])
@pytest.mark.parametrize("on", ["before", "after"])
def test_a_planted_change_is_found(edit: Callable[[onnx.GraphProto], None], on: str) -> None:
    before, after = _normalized()
    if on == "before":
        before = _change(before, edit)
    else:
        after = _change(after, edit)
    assert _worst(before, after) > 1e-4


def test_a_change_deep_in_a_collapsed_body_is_found() -> None:
    model = as_model(_chain())
    normalize(model)
    plan, _ = recognise(model)
    after = to_proto(collapse(model.graph, plan))
    relu = next(n for n in after.functions[0].node if n.op_type == "Relu")
    relu.op_type = "Tanh"
    assert _worst(_shaped(to_proto(model.graph)), after) > 1e-2


def test_another_shape_is_found() -> None:
    before, after = _normalized()
    assert _worst(before, _change(after, _other_attribute)) == np.inf


def test_an_unknown_shape_is_said() -> None:
    before, after = _normalized()
    for proto in (before, after):
        del proto.graph.value_info[:]
        proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="shape of tensor"):
        compare_by_regions(before, after)


def test_a_region_reads_captured_tensors() -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["outer"], ["inner"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    node = onnx.helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner)
    assert (
        "outer"
        in Side.of(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))).reads[0]
    )


@pytest.fixture
def by_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WHOLE_UP_TO", 0)


@pytest.mark.usefixtures("by_regions")
def test_the_pipeline_goes_by_regions(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_chain(), path)
    result = optimize(path, tmp_path / "out.onnx", RandomSamples(2))
    assert set(result.proofs) == {"clean", "clean opset", "normalize", "collapse", "verify"}
    assert all(p.is_within(TOLERANCE) for s, p in result.proofs.items() if s != "verify")
    assert result.trace.undone() == []


@pytest.mark.usefixtures("by_regions")
def test_a_wrong_rule_is_undone_by_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(match: Match, edit: Edit) -> str | None:
        w = match.tensors["w"]
        if "spoiled" in w.name:
            return "done"
        spoiled = edit.constant(f"{w.name}_spoiled", w.values * np.float32(1.01))
        match.root.inputs[1] = spoiled
        return None

    planted = Rule("Planted", "", op("Conv", var("x"), const("w"), optional(const("b"))), spoil)
    monkeypatch.setattr(run, "RULES", (*RULES, planted))
    path = tmp_path / "m.onnx"
    onnx.save(_chain(), path)
    result = optimize(path, None, RandomSamples(2), precision="fp32")
    assert [event.name for event in result.trace.undone()] == ["Planted"]
    assert result.proofs["normalize"].is_within(TOLERANCE)
