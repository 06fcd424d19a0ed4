"""The stage smooth on a small transformer block: outliers go, results stay, settings are obeyed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net, assert_equal

from fusewright import RandomSamples, apply, inspect, optimize
from fusewright.errors import DataError, PlanError, UsageError, VerifyError
from fusewright.pipeline import Result, run, smoothing
from fusewright.plan.file import plan_text, write_plan
from fusewright.quantize.migrate import Applied

WIDTH = 32
OUTLIERS = (3, 17)


def _norm(net: Net, x: str, name: str) -> str:
    """LayerNorm with two outlier channels, as trained transformers have them."""
    gamma = net.random.uniform(0.5, 1.5, WIDTH)
    gamma[list(OUTLIERS)] *= 40.0
    return net.op(
        "LayerNormalization",
        x,
        net.store(gamma, "gamma"),
        net.draw(WIDTH, name="beta"),
        axis=-1,
        name=name,
    )


def _linear(net: Net, x: str, name: str, into: int = WIDTH, out: int = WIDTH) -> str:
    """Where outliers arrive, the weights are as small as they have to be."""
    weight = net.random.standard_normal((into, out)) / np.sqrt(into)
    if into == WIDTH:
        weight[list(OUTLIERS)] /= 40.0
    return net.op("Add", net.op("MatMul", x, net.store(weight, "w"), name=name), net.draw(out))


def _block() -> onnx.ModelProto:
    """Attention of two heads and an MLP with GELU, both behind a norm and in a residual."""
    net = Net(opset=20)
    x = net.input("x", "batch", 10, WIDTH)
    y = _norm(net, x, "norm1")
    q, k, v = (
        net.op("Transpose", net.op("Reshape", _linear(net, y, n), [0, 10, 2, 16]), perm=p)
        for n, p in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
    )
    weights = net.op("Softmax", net.op("Mul", net.op("MatMul", q, k), 0.25), axis=-1)
    core = net.op("Transpose", net.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    core = net.op("Reshape", core, [0, 10, WIDTH])
    x = net.op("Add", x, _linear(net, core, "proj"))
    hidden = net.op("Gelu", _linear(net, _norm(net, x, "norm2"), "fc1", out=64))
    x = net.op("Add", x, _linear(net, hidden, "fc2", into=64))
    return net.proto(_linear(net, _norm(net, x, "norm3"), "head", out=10))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smooth") / "block.onnx"
    onnx.save(_block(), path)
    return path


DATA = RandomSamples(16)


def _quality(result: Result) -> float:
    assert result.accuracy is not None
    assert result.accuracy.worst is not None
    return float(result.accuracy.worst.sqnr_db or 0.0)


def _settings(result: Result) -> dict[str, object]:
    return {g.name: g.smooth for g in result.plan.groups if g.smooth is not None}


def test_outliers_are_smoothed_and_the_proof_holds(model: Path) -> None:
    off = optimize(model, None, DATA, smooth="off")
    results = {setting: optimize(model, None, DATA, smooth=setting) for setting in (0.5, "auto")}
    for result in results.values():
        assert _quality(result) > _quality(off) + 6.0
        assert result.proofs["smooth"].is_within(1e-5)
        assert result.trace.undone() == []
    assert "smooth" not in off.proofs
    assert _settings(off) == {}
    assert set(_settings(results[0.5]).values()) == {0.5}
    assert len(_settings(results[0.5])) == 3  # the projection of q, k and v, fc1, head


def test_the_float_file_behind_it_is_equal(model: Path) -> None:
    from fusewright import strip_qdq

    result = optimize(model, None, DATA, smooth=0.5, precision="int8")
    flat = optimize(model, None, DATA, smooth=0.5, precision="int8", flat=True)
    for made in (result, flat):
        assert_equal(onnx.load(model), strip_qdq(made.model))


def test_reasons_are_in_the_trace(model: Path) -> None:
    trace = optimize(model, None, DATA, smooth=0.5).trace
    found = {e.where: e.detail for e in trace if e.stage == "smooth" and e.what == "miss"}
    assert found["fc2"].startswith("behind Gelu")
    assert "attention's v is not smoothed" in found["proj"]
    done = {e.where: e.detail for e in trace if e.stage == "smooth" and e.what == "match"}
    assert set(done) == {"q", "fc1", "head"}
    assert all(detail.startswith("α 0.5, s ") for detail in done.values())
    (line,) = [e.detail for e in trace if e.stage == "smooth" and e.what == "pass"]
    assert line == "3 of 5 inputs of quantized Linears, α 0.5"


def test_nothing_to_smooth_is_no_stage(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4))
    path = tmp_path / "net.onnx"
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    onnx.save(net.proto(net.op("Gemm", x, net.draw(8, 5), name="head")), path)
    trace = optimize(path, None, DATA).trace
    assert "smooth" not in trace.seconds
    assert [e.where for e in trace if e.stage == "smooth"] == ["head"]


def test_float_precision_is_not_smoothed(model: Path) -> None:
    result = optimize(model, None, DATA, precision="fp32", smooth=0.5)
    assert "smooth" not in result.trace.seconds


@pytest.mark.parametrize("setting", ["no", 1.5, -0.1, "nan", True, None])
def test_other_settings_are_refused(model: Path, setting: object) -> None:
    said = r"neither off, auto nor a number 0 to 1|'smooth' takes float or str"
    with pytest.raises(UsageError, match=said):
        optimize(model, None, DATA, smooth=setting)


def test_a_plan_file_sets_groups_apart(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    plan = inspect(model)
    plan.group("fc1").smooth = 0.75
    plan.group("head").smooth = "off"
    write_plan(plan, path)
    assert "  smooth: 0.75\n" in path.read_text(encoding="utf-8")
    result = optimize(model, None, DATA, plan=path, smooth=0.5)
    assert _settings(result) == {"q": 0.5, "fc1": 0.75, "head": "off"}
    assert _settings(apply(plan, None, DATA, smooth=0.5)) == _settings(result)


def test_the_plan_of_a_run_gives_the_run_again(model: Path, tmp_path: Path) -> None:
    first = optimize(model, tmp_path / "first.onnx", DATA, smooth="auto")
    path = tmp_path / "plan.yaml"
    write_plan(first.plan, path)
    again = optimize(model, None, DATA, plan=path, smooth="off")
    assert _settings(again) == _settings(first)
    assert again.model.graph == first.model.graph


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2", "group 'fc1' has smooth: 2; it is off, auto or a number from 0 to 1"),
        ("maybe", "group 'fc1' has smooth: maybe"),
        ("off", None),
        ("auto", None),
    ],
)
def test_what_a_plan_file_can_say(
    model: Path, tmp_path: Path, text: str, message: str | None
) -> None:
    plan = inspect(model)
    plan.group("fc1").smooth = 0.5
    path = tmp_path / "plan.yaml"
    path.write_text(plan_text(plan).replace("smooth: 0.5", f"smooth: {text}"), encoding="utf-8")
    if message is None:
        assert set(_settings(optimize(model, None, DATA, plan=path, smooth="off"))) <= {"fc1"}
        return
    with pytest.raises(PlanError, match=message):
        optimize(model, None, DATA, plan=path)


def test_a_number_where_it_cannot_be_is_refused(model: Path) -> None:
    plan = inspect(model)
    plan.group("fc2").smooth = 0.5
    with pytest.raises(PlanError, match="group 'fc2' cannot be smoothed: behind Gelu"):
        apply(plan, None, DATA)
    plan.group("fc2").smooth = "lots"
    with pytest.raises(PlanError, match="has smooth 'lots'"):
        apply(plan, None, DATA)


def test_groups_on_one_tensor_have_to_agree(tmp_path: Path) -> None:
    net = Net()
    y = _norm(net, net.input("x", "batch", 10, WIDTH), "norm")
    path = tmp_path / "net.onnx"
    onnx.save(net.proto(_linear(net, y, "one"), _linear(net, y, "two", out=8)), path)
    plan = inspect(path)
    plan.group("one").smooth, plan.group("two").smooth = 0.3, 0.5
    with pytest.raises(PlanError, match=r"'one' 0\.3, 'two' 0\.5"):
        apply(plan, None, DATA)
    plan.group("two").smooth = None
    assert _settings(apply(plan, None, DATA)) == {"one": 0.3, "two": 0.3}


def _spoiling(wrong: str):
    """An `apply_smoothing` that forgets the weights of one place."""
    right = smoothing.apply_smoothing

    def spoiled(plan, sites, scales, workspace) -> Applied:
        applied = right(plan, sites, scales, workspace)
        for site in sites:
            if wrong in site.groups:
                names = set(site.weights)
                for tensor, held in [pair for pair in applied.held if pair[0].name in names]:
                    tensor._values = held
        return applied

    return spoiled


def test_a_wrong_place_is_undone_and_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing, "apply_smoothing", _spoiling("fc1"))
    result = optimize(model, None, DATA, smooth=0.5)
    (event,) = result.trace.undone()
    assert (event.stage, event.name) == ("smooth", "fc1")
    assert _settings(result) == {"q": 0.5, "fc1": "off", "head": 0.5}
    assert _quality(result) > 15.0


def test_a_wrong_place_under_strict(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing, "apply_smoothing", _spoiling("fc1"))
    with pytest.raises(VerifyError, match="smooth: fc1"):
        optimize(model, None, DATA, smooth=0.5, strict=True)


@pytest.mark.parametrize("wrong", ["", "head"])
def test_proof_by_regions(model: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setattr(run, "WHOLE_UP_TO", 0)
    if wrong:
        monkeypatch.setattr(smoothing, "apply_smoothing", _spoiling(wrong))
    result = optimize(model, None, DATA, smooth=0.5)
    undone = [event.name for event in result.trace.undone() if event.stage == "smooth"]
    assert undone == ([wrong] if wrong else [])
    kept = {"q", "fc1", "head"} - {wrong}
    assert {name for name, value in _settings(result).items() if value == 0.5} == kept


class _Once:
    """A reader without `rewind`."""

    def __init__(self) -> None:
        self.left = iter(_feeds(40))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def _feeds(count: int) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(4)
    for _ in range(count):
        yield {"x": random.standard_normal((1, 10, WIDTH)).astype(np.float32)}


def test_a_reader_that_gives_its_samples_once(model: Path) -> None:
    once = optimize(model, None, _Once())
    again = optimize(model, None, list(_feeds(40)))
    assert once.samples == again.samples == 40
    assert set(_settings(once).values()) - {"off"}
    assert once.model == again.model
    with pytest.raises(DataError, match=r"only once; give it a rewind\(\) method"):
        optimize(model, None, _Once(), smooth=0.5)
    assert optimize(model, None, _Once(), smooth="off").samples == 40
    assert optimize(model, None, _Once(), smooth=0.5, samples=8).samples == 8


def test_two_runs_give_the_same_bytes(model: Path) -> None:
    one, other = (optimize(model, None, DATA).model for _ in range(2))
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
