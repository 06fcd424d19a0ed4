"""What the search takes, leaves and remembers, on costs that are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from building import Net
from searching import Costs, FakeJudge, FakeWorkshop, chain_plan, planned

from fusewright.errors import EngineError
from fusewright.plan.file import apply_plan_file, write_plan
from fusewright.plan.plan import FLOAT, Plan
from fusewright.quantize.placement import place
from fusewright.search import Journal, SearchOptions, SearchResult, search_placement
from fusewright.search.result import FAILED, LEFT, TAKEN, UNTRIED

FREE = SearchOptions(float_share=1.0)


def _search(
    plan: Plan,
    costs: Costs,
    tmp_path: Path,
    options: SearchOptions = FREE,
    judge: FakeJudge | None = None,
    journal: Journal | None = None,
) -> SearchResult:
    workshop = FakeWorkshop(plan, costs, tmp_path)
    judge = judge or FakeJudge(costs)
    return search_placement(plan, workshop, judge, journal or Journal(None, ""), options)


def _floats(plan: Plan) -> set[str]:
    return {group.name for group in plan.groups if not group.is_quantized}


def _verdicts(result: SearchResult) -> dict[str, str]:
    return {trial.choice: trial.verdict for trial in result.trials}


def test_takes_what_saves_and_leaves_the_rest(tmp_path: Path) -> None:
    plan = chain_plan()
    result = _search(plan, Costs({"fc0": (-2, -10, -0.1), "fc1": (1, 10, -0.1)}), tmp_path)
    assert _floats(plan) == {"fc0"}
    assert (result.best.figures.kernels, result.best.figures.bytes) == (98, 990)
    assert plan.group("fc0").reason.startswith("search: 100 kernels, 0.00 MB → 98 kernels")
    assert [g.decision for g in plan.groups].count(FLOAT) == 1


def test_nothing_is_taken_that_costs_accuracy(tmp_path: Path) -> None:
    plan = chain_plan()
    result = _search(plan, Costs({"fc0": (-2, -10, 1e-9)}), tmp_path)
    assert not _floats(plan)
    assert result.best == result.start
    left = next(t for t in result.trials if t.verdict == LEFT and "fc0" in t.choice)
    assert "less accurate than the rules" in left.detail


def test_bytes_pay_for_kernels_and_accuracy_for_accuracy(tmp_path: Path) -> None:
    """None of the three may be taken alone; together they are better in everything."""
    plan = chain_plan()
    costs = {"fc0": (-20, 30, 0.0), "fc1": (-1, -60, 0.2), "fc2": (1, 1, -0.5)}
    result = _search(plan, Costs(costs), tmp_path)
    assert _floats(plan) == {"fc0", "fc1", "fc2"}
    assert (result.best.figures.kernels, result.best.figures.bytes) == (80, 971)
    assert result.best.error is not None and result.best.error < 1.0


def test_what_is_taken_was_built_together(tmp_path: Path) -> None:
    """The sum of two is worse than its parts promised: one of them is taken."""

    class Clash(Costs):
        def of(self, floats: frozenset[str]) -> tuple[int, int, float]:
            kernels, size, noise = super().of(floats)
            return kernels, size + 100 * (len(floats & {"fc0", "fc1"}) == 2), noise

    plan = chain_plan()
    costs = Clash({"fc0": (-5, -10, 0.0), "fc1": (-4, -10, 0.0)})
    result = _search(plan, costs, tmp_path)
    assert len(_floats(plan) & {"fc0", "fc1"}) == 1
    assert result.best.figures.bytes == 990
    assert "rejected" in {trial.verdict for trial in result.trials}


def test_arithmetic_is_not_sold(tmp_path: Path) -> None:
    """fc0 has 64 of 832 multiply-adds, fc3 384; a tenth may become float."""
    plan = chain_plan((8, 16, 16, 24))
    costs = Costs(dict.fromkeys(("fc0", "fc1", "fc2", "fc3"), (-5, -10, -0.1)))
    result = _search(plan, costs, tmp_path, SearchOptions(float_share=0.1))
    assert _floats(plan) == {"fc0"}
    assert result.quantized_work == pytest.approx(1 - 64 / (64 + 128 + 256 + 384))
    untried = [t for t in result.trials if t.verdict == UNTRIED]
    assert any("46.2% of the quantized multiply-adds" in trial.detail for trial in untried)


def test_what_the_user_decided_stays(tmp_path: Path) -> None:
    plan = chain_plan()
    options = SearchOptions(float_share=1.0, fixed=frozenset({"fc0"}))
    result = _search(plan, Costs({"fc0": (-5, -10, -0.1)}), tmp_path, options)
    assert not _floats(plan)
    assert not any("fc0" in trial.choice for trial in result.trials)


def test_a_build_that_fails_is_a_trial_that_failed(tmp_path: Path) -> None:
    plan = chain_plan()
    costs = Costs({"fc0": (-5, -10, 0.0), "fc3": (-5, -10, 0.0)})
    judge = FakeJudge(costs, fails=frozenset({"fc3"}))
    result = _search(plan, costs, tmp_path, judge=judge)
    assert _floats(plan) == {"fc0"}
    failed = [t for t in result.trials if t.verdict == FAILED]
    assert failed and all(trial.detail == "no kernel for this" for trial in failed)


def test_rules_that_do_not_build_are_an_error(tmp_path: Path) -> None:
    plan = chain_plan()
    plan.groups[0].decision = FLOAT
    judge = FakeJudge(Costs({}), fails=frozenset({"fc0"}))
    with pytest.raises(EngineError, match="no kernel for this"):
        _search(plan, Costs({}), tmp_path, judge=judge)


def test_the_budget_ends_it_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 1))
    monkeypatch.setattr("fusewright.search.bench.time.perf_counter", lambda: float(next(clock)))
    plan = chain_plan()
    costs = Costs({"fc0": (-5, -10, -0.1), "fc3": (-5, -10, -0.1)})
    options = SearchOptions(budget=3.0, float_share=1.0)
    result = _search(plan, costs, tmp_path, options)
    assert result.seconds <= 4
    untried = [t for t in result.trials if t.verdict == UNTRIED]
    assert untried and all("budget of 3 s is spent" in t.detail for t in untried)


def test_a_second_run_builds_nothing(tmp_path: Path) -> None:
    costs = Costs({"fc0": (-20, 30, 0.0), "fc1": (-1, -60, 0.2), "fc2": (1, 1, -0.5)})
    path = tmp_path / "journal"
    lines, built = [], []
    for _ in range(2):
        plan, judge = chain_plan(), FakeJudge(costs)
        result = _search(plan, costs, tmp_path, judge=judge, journal=Journal(path, "same"))
        lines.append(result.lines())
        built.append(len(judge.builds))
    assert lines[0] == lines[1]
    assert built[0] > 4 and built[1] == 0


def test_other_data_is_another_search(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for context in ("one", "two"):
        judge = FakeJudge(Costs({}))
        _search(chain_plan(), Costs({}), tmp_path, judge=judge, journal=Journal(path, context))
        assert judge.builds


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_interrupted_it_keeps_what_is_finished(tmp_path: Path, stop: int) -> None:
    costs, path = Costs({"fc0": (-5, -10, -0.1)}), tmp_path / "journal"
    plan = chain_plan()
    with pytest.raises(KeyboardInterrupt):
        judge = FakeJudge(costs, stop_after=stop)
        _search(plan, costs, tmp_path, judge=judge, journal=Journal(path, ""))
    assert not _floats(plan), "the plan is the rules' own again"
    whole, rest = FakeJudge(costs), FakeJudge(costs)
    expected = _search(chain_plan(), costs, tmp_path, judge=whole)
    plan = chain_plan()
    result = _search(plan, costs, tmp_path, judge=rest, journal=Journal(path, ""))
    assert result.lines() == expected.lines()
    assert len(rest.builds) == len(whole.builds) - stop
    assert _floats(plan) == {"fc0"}


def test_verdicts_and_note(tmp_path: Path) -> None:
    costs = Costs({"fc0": (-2, -10, -0.1)})
    result = _search(chain_plan(), costs, tmp_path)
    verdicts = _verdicts(result)
    assert verdicts["the first layer in float: fc0"] == TAKEN
    assert verdicts["the last layer in float: fc3"] == LEFT
    head = result.lines()[0]
    assert "100 → 98 kernels" in head and "0.00 dB SQNR → 0.46 dB SQNR" in head
    plain = result.to_dict()
    assert plain["rules"]["kernels"] == 100 and plain["best"]["kernels"] == 98
    assert len(plain["trials"]) == len(result.trials)


def test_tells_each_trial_as_it_ends(tmp_path: Path) -> None:
    told: list[str] = []
    options = SearchOptions(float_share=1.0, told=lambda text, seconds: told.append(text))
    result = _search(chain_plan(), Costs({"fc0": (-2, -10, -0.1)}), tmp_path, options)
    assert len(told) == sum(t.verdict in (TAKEN, LEFT) and "together" not in t.choice
                            for t in result.trials)  # fmt: skip
    assert any(line.endswith("98 kernels, 0.00 MB, 0.46 dB SQNR") for line in told)


def test_a_plan_file_holds_a_skip_in_float(tmp_path: Path) -> None:
    def made() -> Plan:
        net = Net()
        x = net.op("Relu", net.conv(net.input("x", "b", 32, 8, 8), 32, 32))
        y = net.op("Relu", net.conv(x, 32, 32))
        x = net.op("Relu", net.op("Add", net.conv(y, 32, 32, name="block"), x))
        return planned(net, net.op("Relu", net.conv(x, 32, 32)))

    plan = made()

    class SkipCosts(Costs):
        def of(self, floats: frozenset[str]) -> tuple[int, int, float]:
            skipped = plan.group("block").inputs_to_quantize == (0,)
            return self.kernels - skipped, self.bytes, self.noise

    result = _search(plan, SkipCosts({}), tmp_path)
    assert plan.group("block").inputs_to_quantize == (0,)
    assert "skip in float by search" in plan.group("block").reason
    file, again = tmp_path / "plan.yaml", made()
    write_plan(plan, file)
    apply_plan_file(again, file)
    assert place(again).lines() == result.placement.lines()
    assert place(made()).lines() != result.placement.lines()


_LONG = tuple(range(8, 40, 2))


def _long_search(
    tmp_path: Path, adds_up: bool, **fake: frozenset[str]
) -> tuple[SearchResult, FakeJudge]:
    costs = Costs({"fc0": (-2, -10, -0.1), "fc5": (-3, -10, -0.1), "fc9": (2, 10, 0.1)})
    judge = FakeJudge(costs, adds_up=adds_up, **fake)
    return _search(chain_plan(_LONG, batch=4), costs, tmp_path, judge=judge), judge


def test_by_parts_it_takes_the_same_with_fewer_builds(tmp_path: Path) -> None:
    whole, judge = _long_search(tmp_path, False)
    parts, fewer = _long_search(tmp_path, True)
    assert not judge.parts and fewer.parts
    assert parts.best == whole.best and not parts.best.figures.by_parts
    assert _verdicts(parts) == _verdicts(whole)
    lines = [line.replace("about ", "") for line in parts.lines()]
    assert lines == whole.lines(), "the same figures, told as what they are"
    assert any("about 97 kernels" in line for line in parts.lines())
    # The rules' own, "all behind ...", and what is taken together.
    assert len(fewer.builds) <= 4 < len(judge.builds)


def test_a_part_that_does_not_build_is_tried_whole(tmp_path: Path) -> None:
    result, _ = _long_search(tmp_path, True, no_parts=frozenset({"fc5"}))
    assert any("fc5" in line and "about" not in line for line in result.lines()[1:])
    assert _verdicts(result) == _verdicts(_long_search(tmp_path, False)[0])


def test_parts_are_in_the_journal(tmp_path: Path) -> None:
    costs, path = Costs({"fc0": (-2, -10, -0.1)}), tmp_path / "journal"
    found = []
    for _ in range(2):
        plan, judge = chain_plan(_LONG, batch=4), FakeJudge(costs, adds_up=True)
        workshop = FakeWorkshop(plan, costs, tmp_path)
        result = search_placement(plan, workshop, judge, Journal(path, "same"), FREE)
        found.append((result.lines(), len(judge.builds), len(judge.parts), workshop.made))
    assert found[1] == (found[0][0], 0, 0, 1), "only what parts would be held against is made"
    assert found[0][2] > 4


def test_parts_of_unknown_size_are_tried_whole(tmp_path: Path) -> None:
    judge = FakeJudge(Costs({}), adds_up=True)
    _search(chain_plan(_LONG, batch="b"), Costs({}), tmp_path, judge=judge)
    assert judge.builds and not judge.parts
