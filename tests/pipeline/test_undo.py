"""A rewrite that changes the results is undone and named; the others stay; strict is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net, assert_equal

from fusewright import RandomSamples, optimize
from fusewright.calibrate import open_samples
from fusewright.errors import VerifyError
from fusewright.graph.load import read_source
from fusewright.match.matcher import Match
from fusewright.match.pattern import const, op, optional, var
from fusewright.normalize import RULES
from fusewright.normalize.rule import Edit, Rule
from fusewright.pipeline import prepare, stages
from fusewright.pipeline.prepare import Preparation
from fusewright.pipeline.proof import TOLERANCE, Proof
from fusewright.pipeline.trace import Trace
from fusewright.plan.collapse import collapse
from fusewright.verify import Reference

_CONV = op("Conv", var("x"), const("w"), optional(const("b")), name="conv")


def _scaling(factor: float) -> Rule:
    """A rule that scales weights; by 1.01 it is wrong, by 1 + 1e-7 it is rounding."""

    def rewrite(match: Match, edit: Edit) -> str | None:
        conv, weight = match.named["conv"], match.tensors["w"]
        if conv.attrs.pop("planted", None) is not None or conv.name.endswith("scaled"):
            return "scaled already"
        scaled = weight.values * np.float32(factor)
        new = edit.node("Conv", [*match.root.inputs], f"{conv.name}/scaled", dict(conv.attrs))
        new.inputs[1] = edit.constant(f"{weight.name}_scaled", scaled)
        edit.replace(match, [new])
        return None

    return Rule("Planted", f"conv(x, w) → conv(x, {factor}·w)", _CONV, rewrite)


def _net() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.batchnorm(net.conv(net.input("x", 1, 4, 8, 8), 8, 4), 8))
    x = net.op("Relu", net.op("Add", net.conv(x, 8, 8), x))
    x = net.op("ReduceMean", net.op("Identity", x), axes=[2, 3], keepdims=1)
    return net.proto(net.op("Gemm", net.op("Flatten", x), net.draw(8, 5), net.draw(5)))


def _saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(_net(), path)
    return path


def _prepared(path: Path, rules: tuple[Rule, ...], strict: bool = False):
    source, trace = read_source(path), Trace()
    feeds = open_samples(RandomSamples(4), source.interface.inputs).take(4)
    proof = Proof(lambda: Reference(path, feeds), trace, strict)
    return Preparation(source, trace, proof).run(rules), trace, proof


@pytest.mark.parametrize("position", [0, len(RULES)], ids=["first", "last"])
def test_wrong_rule_is_undone_and_named_and_the_others_kept(position: int, tmp_path: Path) -> None:
    path = _saved(tmp_path)
    rules = (*RULES[:position], _scaling(1.01), *RULES[position:])
    model, trace, proof = _prepared(path, rules)
    (event,) = trace.undone()
    assert (event.stage, event.name) == ("normalize", "Planted")
    assert "at 2 nodes" in event.detail
    right, right_trace, _ = _prepared(path, RULES)
    assert [n.op for n in model.graph.nodes] == [n.op for n in right.graph.nodes]
    assert "BatchNormalization" not in [n.op for n in model.graph.nodes]
    assert_equal(_net(), model)
    matched = {e.name for e in trace if e.what == "match"}
    assert matched == {e.name for e in right_trace if e.what == "match"}
    assert {"FoldBatchNorm", "GemmToMatMul", "ReduceMeanPool"} <= matched
    assert all(result.is_within(TOLERANCE) for result in proof.results.values())


def test_rounding_is_not_undone(tmp_path: Path) -> None:
    _, trace, _ = _prepared(_saved(tmp_path), (_scaling(1 + 2e-7),))
    assert trace.undone() == []
    assert "Planted" in {e.name for e in trace if e.what == "match"}


def test_strict_makes_it_an_error(tmp_path: Path) -> None:
    with pytest.raises(VerifyError) as error:
        _prepared(_saved(tmp_path), (*RULES, _scaling(1.01)), strict=True)
    assert "Planted" in str(error.value)
    assert "normalize" in str(error.value)
    assert "\n" not in str(error.value)


def test_two_wrong_rules_are_both_found(tmp_path: Path) -> None:
    other = Rule("AlsoPlanted", "", _CONV, _scaling(0.5).rewrite)
    _, trace, _ = _prepared(_saved(tmp_path), (_scaling(1.01), *RULES, other))
    assert [e.name for e in trace.undone()] == ["Planted", "AlsoPlanted"]


def _spoiled(clean: Callable[..., onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
    def wrong(source: object, workspace: object) -> onnx.ModelProto:
        proto = clean(source)  # without the workspace: its weights are at hand
        for tensor in proto.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.ndim == 4:
                tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.01), tensor.name))
        return proto

    return wrong


def test_wrong_cleaning_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "clean", _spoiled(prepare.clean))
    result = optimize(_saved(tmp_path), tmp_path / "out.onnx", RandomSamples(4), precision="fp32")
    (event,) = result.trace.undone()
    assert event.stage == "clean"
    assert_equal(_net(), result.model)
    assert result.plan.counts()["ConvBNAddAct"] == 1


def test_wrong_cleaning_under_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "clean", _spoiled(prepare.clean))
    with pytest.raises(VerifyError, match="clean"):
        optimize(_saved(tmp_path), tmp_path / "out.onnx", RandomSamples(4), strict=True)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def _wrong_for(kind: str):
    """A collapse whose bodies of one kind lose their activation."""

    def wrong(graph, plan, groups=None):
        made = collapse(graph, plan, groups)
        for function in made.functions:
            if function.name.startswith(kind):
                for node in function.nodes:
                    node.op = "Sigmoid" if node.op == "Relu" else node.op
        return made

    return wrong


def test_wrong_collapse_leaves_that_kind_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "collapse", _wrong_for("ConvBNAddAct"))
    result = optimize(_saved(tmp_path), tmp_path / "out.onnx", RandomSamples(4), precision="fp32")
    (event,) = result.trace.undone()
    assert (event.stage, event.name) == ("collapse", "ConvBNAddAct")
    assert "1 groups stay flat" in event.detail
    calls = [n.op_type for n in result.model.graph.node if n.domain == "fusewright"]
    assert sorted(calls) == ["AdaptiveAvgPool", "ConvBNAct", "Linear"]
    assert_equal(_net(), result.model)


def test_a_kind_left_flat_is_still_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "collapse", _wrong_for("ConvBNAddAct"))
    result = optimize(_saved(tmp_path), tmp_path / "out.onnx", RandomSamples(4))
    assert [g.decision for g in result.plan.groups if g.kind == "ConvBNAddAct"] == ["int8"]
    assert result.accuracy is not None
    assert result.accuracy.is_within(0.1)


def test_wrong_collapse_under_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "collapse", _wrong_for("ConvBNAddAct"))
    with pytest.raises(VerifyError, match="ConvBNAddAct"):
        optimize(_saved(tmp_path), tmp_path / "out.onnx", RandomSamples(4), strict=True)
    assert not (tmp_path / "out.onnx").exists()


def test_undone_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "collapse", _wrong_for("ConvBNAct"))
    report = optimize(_saved(tmp_path), None, RandomSamples(4)).to_dict()
    assert [(e["stage"], e["name"]) for e in report["undone"]] == [
        ("collapse", "ConvBNAct"),
    ]
