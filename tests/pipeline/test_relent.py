"""What the Q/DQ linter refuses is left float, with the reason, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net
from odd_graphs import GRAPHS
from onnx import TensorProto, helper

import fusewright.precision.plan as half_plan
from fusewright import RandomSamples, Result, optimize
from fusewright.errors import ModelError
from fusewright.pipeline import quantizing
from fusewright.quantize.lint import Violation
from fusewright.quantize.relent import relent

DATA = RandomSamples(4)
Fault = Callable[[gs.Graph], list[Violation]]


@pytest.fixture(autouse=True)
def relents(strict_linter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "relent", relent)


def _net(tmp_path: Path) -> Path:
    """Two branches into one Concat, and an If that reads in one of them, all quantized."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4), name="stem")
    left = net.op("Relu", net.conv(x, 8, 8, name="left"))
    right = net.op("Relu", net.conv(x, 8, 8, name="right"))
    y = net.op("Relu", net.conv(net.op("Concat", left, right, axis=1, name="both"), 8, 16))
    behind = net.conv(y, 4, 8, name="behind")
    inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    bodies = [
        helper.make_graph([helper.make_node(op, [left], ["inner"], f"in_{op}")], op, [], [inner])
        for op in ("Neg", "Abs")
    ]
    net.input("if", dtype=bool)
    net.op("If", "if", name="branch", then_branch=bodies[0], else_branch=bodies[1])
    path = tmp_path / "net.onnx"
    onnx.save(net.proto(behind, "branch_y"), path)
    return path


def _at(name: str) -> Fault:
    """A fault at a node, as long as what it reads or is has a pair."""

    def found(graph: gs.Graph) -> list[Violation]:
        (node,) = [n for n in graph.nodes if n.name == name]
        pairs = [t for t in node.inputs if t.inputs and t.inputs[0].op == "DequantizeLinear"]
        return [Violation(name, "breaks a rule")] if pairs else []

    return found


def _anywhere(graph: gs.Graph) -> list[Violation]:
    pairs = [n for n in graph.nodes if n.op == "QuantizeLinear"]
    return [Violation(pairs[0].name, "breaks a rule")] if pairs else []


def _optimized(path: Path, **settings: object) -> Result:
    feed = {"x": np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)}
    feeds = [feed | {"if": np.array(i % 2 == 0)} for i in range(4)]
    return optimize(path, None, feeds, **settings)


def _plain(result: Result) -> onnx.ModelProto:
    proto = result.model
    del proto.metadata_props[:]
    return proto


def _conv(result: Result, name: str) -> str:
    (group,) = [g for g in result.plan.groups if name in g.nodes]
    return group.reason if group.decision == "float" else group.decision


@pytest.mark.parametrize("precision", ["int8", "int8+fp16", "int8+bf16", "fp8+fp16"])
def test_the_group_at_fault_is_float_and_all_else_as_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    path = _net(tmp_path)
    excluded = _optimized(path, precision=precision, exclude=("behind",))
    monkeypatch.setattr(quantizing, "lint", _at("behind"))
    found = _optimized(path, precision=precision)
    assert "left float by the Q/DQ linter" in _conv(found, "behind")
    assert "breaks a rule" in _conv(found, "behind")
    assert _conv(found, "left") == precision.partition("+")[0]
    assert _plain(found) == _plain(excluded)
    assert found.placement is not None and excluded.placement is not None
    assert found.placement.lines() == excluded.placement.lines()
    assert found.ranges == excluded.ranges
    (note,) = [note for note in found.notes if "please report this model" in note]
    assert "breaks a rule" in note
    assert not any("please report" in note for note in excluded.notes)


def test_a_node_of_no_group_stands_for_those_that_read_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "lint", _at("both"))
    found = _optimized(_net(tmp_path))
    decisions = [group.decision for group in found.plan.groups]
    assert decisions == ["int8", "int8", "int8", "float", "int8"]


def test_what_is_refused_again_and_again_ends_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "lint", _anywhere)
    found = _optimized(_net(tmp_path))
    assert {group.decision for group in found.plan.groups} == {"float"}
    assert "QuantizeLinear" not in {node.op_type for node in found.model.graph.node}
    assert found.accuracy is not None and found.accuracy.worst.relative < 1e-2


def test_strict_says_it_as_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "lint", _at("behind"))
    with pytest.raises(ModelError, match="Q/DQ linter: breaks a rule; please report this model"):
        _optimized(_net(tmp_path), strict=True)


def test_a_fault_without_a_pair_stays_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "lint", lambda _: [Violation("stem", "breaks a rule")])
    with pytest.raises(ModelError, match="breaks a rule"):
        _optimized(_net(tmp_path))


def test_a_real_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what keeps Casts from between a pair and its reader, half cuts SAM's windows."""
    net = Net()
    path = tmp_path / "sam.onnx"
    onnx.save(net.proto(*GRAPHS["sam 1e-6"](net)), path)
    monkeypatch.setattr(half_plan, "undivided", lambda _: [])
    found = optimize(path, None, DATA)
    reasons = [g.reason for g in found.plan.groups if g.decision == "float"]
    assert any("has a pair on one of its two operands" in reason for reason in reasons)
    assert any(group.is_quantized for group in found.plan.groups)
    assert found.accuracy is not None and found.accuracy.worst.relative < 0.05
