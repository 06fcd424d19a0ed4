"""The plan file that a search writes: applied, it gives the same model without a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from building import Net

from fusewright import RandomSamples, apply, optimize
from fusewright.errors import OutputError, PlanError, UsageError
from fusewright.pipeline import Result, searching
from fusewright.search import Figures

WIDTH = 32
# More than a search for α looks at.
SAMPLES = 40
Cost = Callable[[onnx.ModelProto], int]


def _linear(net: Net, x: str, name: str, into: int = WIDTH, out: int = WIDTH) -> str:
    weight = net.random.standard_normal((into, out)) / np.sqrt(into)
    weight[[3, 17]] /= 40.0
    if name == "head":
        weight *= np.where(net.random.uniform(size=weight.shape) > 0.98, 30.0, 1.0)  # rounds badly
    return net.op("Add", net.op("MatMul", x, net.store(weight, "w"), name=name), net.draw(out))


def _transformer() -> onnx.ModelProto:
    """Two blocks of an MLP behind a norm with outliers, in a residual, and a small head."""
    net = Net(opset=20)
    x = net.input("x", "batch", 10, WIDTH)
    for i in range(3):
        gamma = net.random.uniform(0.5, 1.5, WIDTH)
        gamma[[3, 17]] *= 40.0
        inputs = (x, net.store(gamma, "gamma"), net.draw(WIDTH, name="beta"))
        y = net.op("LayerNormalization", *inputs, axis=-1, name=f"norm{i}")
        if i == 2:
            return net.proto(_linear(net, y, "head", out=4))
        y = net.op("Relu", _linear(net, y, f"up{i}", out=64))
        x = net.op("Add", x, _linear(net, y, f"down{i}", into=64), name=f"add{i}")
    raise AssertionError


def _with_skips() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", "b", 32, 8, 8), 32, 32))
    for i in range(2):
        y = net.op("Relu", net.conv(x, 32, 32))
        x = net.op("Relu", net.op("Add", net.conv(y, 32, 32, name=f"block{i}"), x))
    return net.proto(net.op("Relu", net.conv(x, 32, 32)))


def _readers_in_float(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Operator → those of its nodes, in function bodies too, that read no dequantized tensor."""
    found: dict[str, list[str]] = {}
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        pairs = {t for n in nodes if n.op_type == "DequantizeLinear" for t in n.output}
        for node in nodes:
            if not pairs.intersection(node.input[:2]):
                found.setdefault(node.op_type, []).append(node.name)
    return found


def _fewer_linears(model: onnx.ModelProto) -> int:
    return -len(_readers_in_float(model).get("MatMul", []))


def _quantized_norms(model: onnx.ModelProto) -> int:
    """The head in float pays with its accuracy for the stream."""
    found = _readers_in_float(model)
    return _fewer_linears(model) + 3 * len(found.get("LayerNormalization", []))


def _fewer_readers(model: onnx.ModelProto) -> int:
    """Sums in float cost least, and layers in float are not to pay for it."""
    found = _readers_in_float(model)
    return 3 * len(found.get("Conv", [])) - len(found.get("Add", []))


@dataclass(frozen=True)
class _Judge:
    """Builds nothing: a cost that is read off the model."""

    cost: Cost
    least_gain: float = 0.0
    adds_up: bool = False

    @property
    def name(self) -> str:
        return self.cost.__name__

    def figures(self, model: Path) -> Figures:
        return Figures(100 + self.cost(onnx.load(model)), 1000, 0, 0.0)

    def amounts(self, found: Figures) -> dict[str, float]:
        return {"kernels": found.kernels}


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    def run(model: onnx.ModelProto, cost: Cost, **settings: object) -> Result:
        onnx.save(model, tmp_path / "net.onnx")
        monkeypatch.setattr(searching, "find_judge", lambda *_: _Judge(cost))
        data = RandomSamples(SAMPLES)
        out = tmp_path / "out.onnx"
        return optimize(tmp_path / "net.onnx", out, data, search="plan", flat=True, **settings)

    return run


def _file(folder: Path) -> Path:
    return folder / "out.onnx.plan.yaml"


def _again(folder: Path, plan: Path, **settings: object) -> Result:
    data = RandomSamples(SAMPLES)
    settings |= {"plan": plan, "flat": True}
    return optimize(folder / "net.onnx", folder / "again.onnx", data, **settings)


CASES = {
    "a smoothed head in float": (_transformer, _fewer_linears),
    "residual stream": (_transformer, _quantized_norms),
    "skips": (_with_skips, _fewer_readers),
}


@pytest.mark.parametrize(("model", "cost"), CASES.values(), ids=list(CASES))
def test_the_file_gives_the_same_model(
    model: Callable[[], onnx.ModelProto],
    cost: Cost,
    searched: Callable[..., Result],
    tmp_path: Path,
) -> None:
    first = searched(model(), cost)
    assert first.search is not None and first.search.best != first.search.start
    assert any(str(_file(tmp_path)) in note for note in first.notes)
    second = _again(tmp_path, _file(tmp_path))
    assert second.search is None
    assert second.path is not None and first.path is not None
    assert second.path.read_bytes() == first.path.read_bytes()
    assert [g.reason for g in second.plan.groups] == [g.reason for g in first.plan.groups]


def _time_step() -> onnx.ModelProto:
    """Frequencies of a time step up to 1000: steps of INT8 are more than a turn there."""
    net = Net()
    rates = np.exp(-np.log(1e4) * np.arange(16) / 16)
    angle = net.op("MatMul", net.input("step", 4, 1), net.store(rates[None]), name="angle")
    y = net.op("Concat", net.op("Cos", angle), net.op("Sin", angle), axis=-1)
    return net.proto(_linear(net, net.op("Relu", _linear(net, y, "up")), "down"))


@pytest.mark.parametrize("search", ["off", "plan"])
def test_what_calibration_leaves_float_is_no_matter_of_searching(
    search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(_time_step(), tmp_path / "net.onnx")
    monkeypatch.setattr(searching, "find_judge", lambda *_: _Judge(_fewer_readers))
    steps = np.random.default_rng(1).integers(0, 1000, (24, 4, 1)).astype(np.float32)
    data = [{"step": step} for step in steps]
    result = optimize(tmp_path / "net.onnx", None, data, search=search, flat=True)
    angle = result.plan.group("angle")
    assert angle.decision == "float"
    assert "periods for inputs of" in angle.reason
    assert result.accuracy is not None and (result.accuracy.worst.sqnr_db or 0) > 25


def test_what_each_case_is_about(searched: Callable[..., Result], tmp_path: Path) -> None:
    head = searched(_transformer(), _fewer_linears).plan.group("head")
    assert (head.decision, head.prepared_as) == ("float", "int8")
    assert isinstance(head.smooth, float), "its norm was smoothed before the search"
    found = yaml.safe_load(_file(tmp_path).read_text())
    assert "smooth" not in found["groups"][-1], "an α that was found is found again"
    assert found["residual"] == []
    searched(_transformer(), _quantized_norms)
    assert yaml.safe_load(_file(tmp_path).read_text())["residual"]
    searched(_with_skips(), _fewer_readers)
    entries = yaml.safe_load(_file(tmp_path).read_text())["groups"]
    skipping = [e for e in entries if e["kind"] == "ConvBNAddAct"]
    assert [e["inputs_to_quantize"] for e in skipping] == [[0], [0]]


def test_the_plan_itself_applies_again(searched: Callable[..., Result], tmp_path: Path) -> None:
    first = searched(_transformer(), _quantized_norms)
    second = apply(first.plan, tmp_path / "b.onnx", RandomSamples(SAMPLES), flat=True)
    assert first.placement is not None and second.placement is not None
    assert second.placement.lines() == first.placement.lines()


def test_an_edited_file(searched: Callable[..., Result], tmp_path: Path) -> None:
    """Without its lines of the search, what it holds is as if decided by hand."""
    searched(_transformer(), _quantized_norms)
    data = yaml.safe_load(_file(tmp_path).read_text())
    del data["residual"], data["groups"][-1]["prepared_as"]
    _file(tmp_path).write_text(yaml.safe_dump(data))
    head = _again(tmp_path, _file(tmp_path)).plan.group("head")
    assert (head.decision, head.smooth) == ("float", None)


def test_a_tensor_that_is_not_of_the_stream(
    searched: Callable[..., Result], tmp_path: Path
) -> None:
    searched(_transformer(), _fewer_linears)
    text = _file(tmp_path).read_text().replace("residual: []", "residual: [nothing]")
    _file(tmp_path).write_text(text)
    with pytest.raises(PlanError, match="`residual` names 'nothing', which is no tensor"):
        _again(tmp_path, _file(tmp_path))


def test_the_stream_is_said_once(searched: Callable[..., Result], tmp_path: Path) -> None:
    searched(_transformer(), _fewer_linears)
    with pytest.raises(UsageError, match="--int8-residual cannot be added"):
        _again(tmp_path, _file(tmp_path), int8_residual=True)


def test_the_plan_that_it_starts_from_is_not_written_over(
    searched: Callable[..., Result], tmp_path: Path
) -> None:
    searched(_transformer(), _fewer_linears)
    before = _file(tmp_path).read_bytes()
    with pytest.raises(OutputError, match=r"plan.yaml: is the input file"):
        searched(_transformer(), _fewer_linears, plan=_file(tmp_path))
    assert _file(tmp_path).read_bytes() == before


def test_int4_weights_are_judged_as_they_will_be(searched: Callable[..., Result]) -> None:
    """Beside INT8 layers that a search decides on: GPTQ's rounding is in every trial."""
    found = searched(_transformer(), _fewer_linears, group_precision=("down*=int4",))
    assert [found.plan.group(f"down{i}").decision for i in range(2)] == ["int4", "int4"]
    assert found.search is not None and found.accuracy is not None
    assert found.search.best != found.search.start
    worst = found.accuracy.worst
    assert worst is not None and found.search.best.error == worst.relative
