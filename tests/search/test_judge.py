"""Judges, without a builder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from searching import Costs, FakeWorkshop, chain_plan

from fusewright.engine.build import BuildOptions
from fusewright.engine.kernels import Kernel, TensorType
from fusewright.engine.report import EngineReport, Finding, KernelReport
from fusewright.errors import DataError, EngineError
from fusewright.search import (
    Figures,
    Journal,
    LatencyJudge,
    PlanJudge,
    SearchOptions,
    latency_judge,
    search_placement,
)


def _report(milliseconds: float | None = None, shape: tuple[int, ...] = (2, 3)) -> EngineReport:
    tensor, weight = TensorType("a", "Half", shape), TensorType("w", "Int8", (5,))
    kernel = Kernel("k", "gemm", (tensor,), (replace(tensor, name="b"),), (weight,), ("fc",))
    row = KernelReport(kernel, "gemm", "Half", (), ("fc",), milliseconds=milliseconds)
    found = (Finding("alone", (0,), ("fc",), ("q",), "behind Exp", 24),)
    return EngineReport("m", None, "fake", "1", 2.0, 0, {}, (row,) if shape else (), findings=found)


def _plan_judge(report: EngineReport) -> PlanJudge:
    return PlanJudge(BuildOptions(), lambda model: report, "1.0")


def test_figures_of_a_plan() -> None:
    found = _plan_judge(_report()).figures(Path("m"))
    assert (found.kernels, found.activation_bytes, found.weight_bytes) == (1, 24, 5)
    assert (found.bytes, found.seconds) == (29, 2.0)
    assert str(found) == "1 kernels, 0.00 MB"
    assert _plan_judge(_report()).amounts(found) == {"kernels": 1, "MB": 29e-6}


def test_figures_survive_json() -> None:
    found = _plan_judge(_report()).figures(Path("m"))
    assert Figures.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize("data", [{}, {"findings": 3}, {"findings": [{"a": 1}]}, {"findings": []}])
def test_other_data_is_no_figures(data: dict[str, object]) -> None:
    with pytest.raises(DataError, match="not the figures of a placement"):
        Figures.from_dict(data)


def test_a_plan_that_cannot_be_judged() -> None:
    with pytest.raises(EngineError, match="lists no kernels"):
        _plan_judge(_report(shape=())).figures(Path("m"))
    with pytest.raises(EngineError, match="--shapes"):
        _plan_judge(_report(shape=(-1, 3))).figures(Path("m"))


def _timed(times: list[float | None]) -> Callable[[Path], EngineReport]:
    left = iter(times)
    return lambda model: _report(next(left))


def test_latency_is_the_median() -> None:
    found = LatencyJudge(_timed([3.0, 1.0, 2.0]), "t").figures(Path("m"))
    assert found.milliseconds == 2.0
    assert found.seconds == 6.0
    assert str(found) == "2.000 ms (1 kernels, 0.00 MB)"


def test_latency_without_times() -> None:
    with pytest.raises(EngineError, match="no kernel times"):
        LatencyJudge(_timed([3.0, None, 2.0]), "t").figures(Path("m"))


@pytest.mark.parametrize(("gain", "is_taken"), [(0.05, True), (0.005, False), (-0.05, False)])
def test_a_search_by_latency(tmp_path: Path, gain: float, is_taken: bool) -> None:
    """Measured: fc0 in float gains or loses; a gain within the noise is none."""
    plan = chain_plan()

    def builds(model: Path) -> EngineReport:
        floats = model.read_text().split()
        return _report(10.0 * (1 - gain * ("fc0" in floats)))

    workshop = FakeWorkshop(plan, Costs({}), tmp_path)
    judge = LatencyJudge(builds, "t", runs=1, noise=0.01)
    options = SearchOptions(float_share=1.0)
    result = search_placement(plan, workshop, judge, Journal(None, ""), options)
    assert (not plan.group("fc0").is_quantized) == is_taken
    assert ("10.000 → 9.500 ms" in result.headline) == is_taken


def test_latency_needs_trtexec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="trtexec is not on the PATH"):
        latency_judge(BuildOptions())
