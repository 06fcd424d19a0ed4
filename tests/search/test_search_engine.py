"""The search on the real builder: TensorRT-RTX on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net

from fusewright import RandomSamples, optimize
from fusewright.engine.build import BuildOptions, build
from fusewright.errors import EngineError, UsageError
from fusewright.pipeline import Result
from fusewright.search import PlanJudge

RTX = BuildOptions(backend="tensorrt_rtx")
DATA = RandomSamples(6)


def _squeezed() -> onnx.ModelProto:
    """A stem, two blocks that scale their channels by a squeezed gate, and a classifier."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", "batch", 3, 32, 32), 32, 3, name="stem"))
    for i in range(2):
        y = net.op("Relu", net.conv(x, 32, 32, name=f"block{i}"))
        gate = net.op("GlobalAveragePool", y)
        gate = net.op("Relu", net.conv(gate, 8, 32, 1, name=f"squeeze{i}"))
        gate = net.op("Sigmoid", net.conv(gate, 32, 8, 1, name=f"excite{i}"))
        x = net.conv(net.op("Mul", y, gate), 32, 32, 1, name=f"project{i}")
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.proto(net.op("Gemm", x, net.draw(32, 10), net.draw(10), name="head"))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Result:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    folder = tmp_path_factory.mktemp("search")
    onnx.save(_squeezed(), folder / "net.onnx")
    return optimize(
        folder / "net.onnx", folder / "out.onnx", DATA, precision="int8+fp16", search="plan"
    )


def _long() -> onnx.ModelProto:
    """Convolutions in residual pairs and one between: parts are less than half of it."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", "batch", 3, 32, 32), 32, 3, name="stem"))
    for i in range(10):
        y = net.op("Relu", net.conv(x, 32, 32, name=f"first{i}"))
        x = net.op("Relu", net.op("Add", net.conv(y, 32, 32, name=f"second{i}"), x))
        if i == 4:
            x = net.op("Relu", net.conv(x, 32, 32, 1, name="neck"))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.proto(net.op("Gemm", x, net.draw(32, 10), net.draw(10), name="head"))


def test_parts_show_what_the_whole_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    onnx.save(_long(), tmp_path / "net.onnx")
    found = []
    for adds_up in (True, False):
        monkeypatch.setattr(PlanJudge, "adds_up", adds_up)
        result = optimize(tmp_path / "net.onnx", None, DATA, precision="int8+fp16", search="plan")
        assert result.search is not None
        found.append(result.search)
    parts, whole = found
    assert parts.best == replace(whole.best, figures=parts.best.figures)
    assert not parts.best.figures.by_parts
    trials = [(a.outcome, b.outcome) for a, b in zip(parts.trials, whole.trials, strict=True)]
    by_parts = [(a.figures, b.figures) for a, b in trials if a and b and a.figures.by_parts]
    assert len(by_parts) > 2
    for a, b in by_parts:
        assert a.kernels == b.kernels
        assert a.bytes == pytest.approx(b.bytes, abs=2000)


def test_it_beats_the_rules(searched: Result) -> None:
    found = searched.search
    assert found is not None
    start, best = found.start, found.best
    assert best.figures.kernels < start.figures.kernels
    assert best.figures.bytes < start.figures.bytes
    assert best.error is not None and start.error is not None
    assert best.error <= start.error
    assert found.quantized_work >= 0.9


def test_the_file_is_what_was_judged(searched: Result) -> None:
    assert searched.search is not None and searched.path is not None
    best = searched.search.best
    report = build(searched.path, None, RTX)
    assert len(report.kernels) == best.figures.kernels
    assert report.activation_bytes == best.figures.activation_bytes
    assert report.weight_bytes == best.figures.weight_bytes
    worst = searched.accuracy and searched.accuracy.worst
    assert worst is not None
    assert worst.relative == best.error


def test_groups_say_why(searched: Result) -> None:
    assert searched.search is not None
    changed = dict(searched.search.best.variant.decisions)
    assert changed
    for name, decision in changed.items():
        group = searched.plan.group(name)
        assert group.decision == decision
        assert group.reason.startswith("search: ")
    assert {"squeeze0", "squeeze1"} <= changed.keys(), "behind the pools"


def test_the_note_lists_trials_and_what_is_in_the_way(searched: Result) -> None:
    assert searched.search is not None
    lines = searched.search.lines()
    assert lines[0].startswith("search by tensorrt_rtx")
    assert any(line.startswith("taken: ") for line in lines)
    assert any(line.startswith("left: ") for line in lines)
    said = "\n".join(line for line in lines if line.startswith("in the way: "))
    findings = searched.search.best.figures.findings
    assert findings
    for finding in findings:
        kernels = ", ".join(map(str, finding.kernels))
        assert f"kernel {kernels} of {', '.join(finding.groups or finding.nodes)}" in said
    assert searched.to_dict()["search"]["best"]["kernels"] < 100


def test_again_it_builds_nothing_and_writes_the_same(searched: Result) -> None:
    assert searched.path is not None and searched.search is not None
    journal = searched.path.with_name("out.onnx.search.jsonl")
    assert journal.exists()
    source, again = searched.path.with_name("net.onnx"), searched.path.with_name("again.onnx")
    second = optimize(
        source, again, DATA, precision="int8+fp16", search="plan", search_journal=journal
    )
    assert second.search is not None
    assert second.search.seconds == 0
    assert second.search.lines() == searched.search.lines()
    assert again.read_bytes() == searched.path.read_bytes()


def test_other_data_is_searched_anew(searched: Result) -> None:
    assert searched.path is not None
    path, journal = searched.path, searched.path.with_name("out.onnx.search.jsonl")
    other = {"x": np.random.default_rng(5).uniform(0, 1, (6, 3, 32, 32)).astype(np.float32)}
    settings = {"search": "plan", "search_journal": journal, "search_budget": 0.5}
    second = optimize(path.with_name("net.onnx"), None, other, precision="int8+fp16", **settings)
    assert second.search is not None
    assert second.search.seconds > 0


def test_without_an_output_nothing_is_left(searched: Result, tmp_path: Path) -> None:
    onnx.save(_squeezed(), tmp_path / "net.onnx")
    result = optimize(
        tmp_path / "net.onnx", None, DATA, precision="int8", search="plan", search_budget=0.01
    )
    assert result.search is not None
    assert result.search.best == result.search.start
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"search": "fast"}, "search 'fast' is not one of off, plan, latency"),
        ({"search": "plan", "search_budget": 0.0}, "a search budget of 0 s"),
        ({"search_journal": "j"}, "a search journal without a search"),
        ({"search": "plan", "precision": "fp16"}, "precision fp16 has no Q/DQ pairs to place"),
        ({"search": "plan", "precision": "int4+fp16"}, "place: in INT4 there are weights alone"),
    ],
)
def test_bad_requests(tmp_path: Path, settings: dict[str, object], says: str) -> None:
    onnx.save(_squeezed(), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=says):
        optimize(tmp_path / "net.onnx", tmp_path / "out.onnx", DATA, **settings)
    assert not (tmp_path / "out.onnx").exists()


def test_latency_without_trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    onnx.save(_squeezed(), tmp_path / "net.onnx")
    with pytest.raises(EngineError, match="trtexec is not on the PATH"):
        optimize(tmp_path / "net.onnx", tmp_path / "out.onnx", DATA, search="latency")


def test_a_journal_that_is_none(searched: Result, tmp_path: Path) -> None:
    assert searched.path is not None
    (tmp_path / "j").write_text("groups: []\n")
    with pytest.raises(UsageError, match="is not a search journal"):
        optimize(
            searched.path.with_name("net.onnx"),
            None,
            DATA,
            precision="int8+fp16",
            search="plan",
            search_journal=tmp_path / "j",
        )
