"""Recipes, shrinking and workers: the same everywhere, complete, and outliving what they run."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import damage
import file_cases
import graph_cases
import long_run
import onnx
import pytest
from asking import PRECISIONS, draw_asked
from disguises import DISGUISES
from ends import STEMS, TAILS
from judging import Finding, Verdict
from recipe import BLOCKS, build, draw_recipe

SEEDS = range(400)


def test_every_part_is_drawn() -> None:
    recipes = [draw_recipe(seed) for seed in SEEDS]
    assert {recipe.stem[0] for recipe in recipes} == set(STEMS)
    assert {recipe.tail[0] for recipe in recipes} == set(TAILS)
    assert {name for recipe in recipes for name, _ in recipe.blocks} == set(BLOCKS)
    assert {name for recipe in recipes for name, _ in recipe.disguises} == set(DISGUISES)
    assert {draw_asked(seed).precision for seed in SEEDS} == set(PRECISIONS)


def test_a_seed_is_one_graph() -> None:
    for seed in range(20):
        one, other = (build(draw_recipe(seed)) for _ in range(2))
        assert one.proto.SerializeToString() == other.proto.SerializeToString()
        assert all(
            (a[n] == b[n]).all() for a, b in zip(one.feeds, other.feeds, strict=True) for n in a
        )


def test_most_graphs_are_valid() -> None:
    from judging import reference

    valid = 0
    for seed in range(60):
        try:
            reference(build(draw_recipe(seed)))
        except Exception:  # noqa: BLE001 - of onnx or onnxruntime: not valid
            continue
        valid += 1
    assert valid >= 54


def test_a_failure_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails here is a graph with a Softmax in it."""

    def judged(drawn: object, asked: object, folder: object) -> Verdict:
        ops = {node.op_type for node in drawn.proto.graph.node}  # type: ignore[attr-defined]
        return Verdict([Finding("softmax", "")] if "Softmax" in ops else [])

    monkeypatch.setattr(graph_cases, "judge", judged)
    outcome = next(o for o in (graph_cases.look(s, shrink=True) for s in SEEDS) if o.findings)
    assert outcome.smallest.count("_blocks") == 0 and outcome.smallest.startswith("Recipe(")
    recipe = draw_recipe(outcome.seed)
    assert len(outcome.smallest) < len(str(recipe)) or len(recipe.blocks) == 1
    longer = replace(recipe, blocks=recipe.blocks[:1])
    assert len(longer.blocks) == 1


def test_damage_is_damage() -> None:
    model = build(draw_recipe(3)).proto
    before = model.SerializeToString()
    for way in set(file_cases.WAYS):
        found = {file_cases.damaged(model, way, random.Random(seed)) for seed in range(12)}
        assert len(found - {before}) >= 6, way
    assert model.SerializeToString() == before
    assert damage.bytes_damaged(b"", random.Random(0)) is not None
    assert isinstance(damage.fields_damaged(model, random.Random(0)), onnx.ModelProto)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import os; os.abort()", "crash"),
        ("import time; time.sleep(60)", "hang"),
        ("import sys; sys.exit(0)", "crash"),
    ],
)
def test_a_worker_that_dies_is_a_finding(
    code: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_run, "PATIENCE", 2.0)
    worker = long_run.Worker("graphs", "")
    worker.command = [sys.executable, "-c", code]
    assert [found for found, _ in worker.ask(7).findings] == [kind]
    worker.command = [sys.executable, "-c", "input(); print('{\"seed\": 7}')"]
    assert worker.ask(7).findings == []
    worker.stop()


def test_the_long_run(capsys: pytest.CaptureFixture[str]) -> None:
    tally = long_run.run(range(20, 24), 2, "data", "")
    tally.report()
    assert tally.count == 4 and not tally.findings
    assert "4 cases; judged: " in capsys.readouterr().out
