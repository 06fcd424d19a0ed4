"""Applying a plan that was looked at, and changed: it is obeyed, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from building import Net, assert_equal
from small_net import small_net

from fusewright import RandomSamples, apply, inspect, optimize, strip_qdq
from fusewright.errors import (
    DataError,
    PlanError,
)
from fusewright.quantize.existing import count_qdq

DATA = RandomSamples(6)


def test_apply_obeys_a_switched_off_group(model: Path, tmp_path: Path) -> None:
    plan = inspect(model)
    group = next(g for g in plan.groups if "mixed" in g.nodes)
    group.apply = False
    result = apply(plan, tmp_path / "out.onnx", DATA, precision="int8")
    names = {n.name: n for n in result.model.graph.node}
    assert group.name not in {n.name for n in result.model.graph.node if n.domain == "fusewright"}
    conv = next(n for n in result.model.graph.node if n.op_type == "Conv")
    producers = {o: n for n in result.model.graph.node for o in n.output}
    assert all(producers[t].op_type != "DequantizeLinear" for t in conv.input if t in producers), (
        "neither input nor weight of the group is quantized"
    )
    assert names["mixed"].op_type == "Relu"
    assert result.placement is not None
    assert not any(
        "mixed" in reader for s in result.placement.activations for reader, _ in s.readers
    )
    assert_equal(small_net(), strip_qdq(result.model))


def test_apply_leaves_the_plan_and_its_graph_alone(model: Path) -> None:
    plan = inspect(model)
    nodes = [n.name for n in plan.model.graph.nodes]
    first = apply(plan, None, DATA).model
    assert [n.name for n in plan.model.graph.nodes] == nodes
    assert apply(plan, None, DATA).model == first == optimize(model, None, DATA).model


def test_apply_without_data_collapses_in_float(model: Path) -> None:
    result = apply(inspect(model))
    assert count_qdq(result.model) == 0
    assert_equal(small_net(), result.model)


def test_apply_takes_decisions(model: Path) -> None:
    plan = inspect(model)
    for group in plan.groups:
        group.decision = "float"
    assert count_qdq(apply(plan, None, DATA).model) == 0


def _residual(tmp_path: Path) -> Path:
    """conv → next, with an Act → Add between them that is INT8 only while `next` is."""
    net = Net()
    x = net.conv(net.input("x", 1, 4, "h", "w"), 4, 4, name="stem")
    y = net.op("Add", net.op("Relu", net.conv(x, 4, 4, name="conv")), x, name="add")
    path = tmp_path / "residual.onnx"
    onnx.save(net.proto(net.conv(y, 4, 4, name="next")), path)
    return path


SHAPES = {"x": ((1, 4, 8, 8),) * 3}


def test_apply_settles_what_a_switched_off_group_takes_along(tmp_path: Path) -> None:
    plan = inspect(_residual(tmp_path))
    assert plan.group("add").decision == "int8"
    plan.group("next").apply = False
    result = apply(plan, None, RandomSamples(3, shapes={"x": (1, 4, 8, 8)}))
    assert result.plan.group("add").decision == "float"
    assert "both sides or neither" in result.plan.group("add").reason


def test_apply_without_data_takes_the_declared_shapes(tmp_path: Path) -> None:
    plan = inspect(_residual(tmp_path))
    assert count_qdq(apply(plan, shapes=SHAPES).model) == 0
    with pytest.raises(DataError, match="axis 2"):
        apply(plan)


@pytest.mark.parametrize(
    ("group", "decision", "words"),
    [
        ("depthwise", "int8", "multiples of 4"),
        ("head", "int7", "no decision 'int7'; there are int8, fp8, int4, nvfp4, mxfp8, float"),
        ("head", "off", "no decision 'off'"),
    ],
)
def test_apply_refuses_an_impossible_decision(
    model: Path, group: str, decision: str, words: str
) -> None:
    plan = inspect(model)
    next(g for g in plan.groups if group in g.nodes).decision = decision
    with pytest.raises(PlanError, match=words):
        apply(plan, None, DATA)


def test_apply_refuses_other_groups(model: Path) -> None:
    plan = inspect(model)
    gone = plan.groups.pop()
    with pytest.raises(PlanError, match=f"says nothing of group '{gone.name}'"):
        apply(plan, None, DATA)
    plan.groups += [gone, replace(gone, name="absent")]
    with pytest.raises(PlanError, match="has no group 'absent'"):
        apply(plan, None, DATA)


def test_apply_refuses_a_model_that_has_changed(model: Path) -> None:
    plan = inspect(model)
    net = Net()
    onnx.save(net.proto(net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4))), model)
    with pytest.raises(PlanError, match="changed since"):
        apply(plan, None, DATA)
