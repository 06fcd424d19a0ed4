"""How `tools/bench_accuracy.py` judges: the SQNR, the score, and what of it JSON can hold."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
from bench_accuracy import Job, Score, outputs, write
from bench_tasks import DIGITS, SAMPLES, Digits, load_tasks
from same_ops import Figure, SameOps


def test_sqnr_and_score(tmp_path: Path) -> None:
    task = Digits()
    reference = outputs(task, task.model)
    job = Job(task.name, task, reference, 8, tmp_path, argparse.Namespace())
    assert job.judge(task.model) == (math.inf, pytest.approx(99.6))
    # Noise of a tenth of the signal's amplitude is 20 dB, whatever the signal.
    louder = Job(task.name, task, reference / 0.9, 8, tmp_path, argparse.Namespace())
    assert louder.judge(task.model)[0] == pytest.approx(20.0)
    assert np.isfinite(reference).all()


def test_digits_alone_without_a_corpus(tmp_path: Path) -> None:
    tasks = load_tasks(tmp_path / "none")
    assert tasks.keys() == {"digits_cnn", "digits_vit", "digits_swin"} <= SAMPLES.keys()


@pytest.mark.parametrize("task", DIGITS, ids=lambda task: task.name)
def test_digits_are_whole(task: Digits) -> None:
    images, labels = task.test()
    assert task.model.exists()
    assert len(images) == len(labels) == 500
    assert task.calib()["input"].shape[1:] == images.shape[1:]


def test_corpus_decodes_its_images_once(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(
        "from dataclasses import dataclass\n"
        "from collections.abc import Callable\n"
        "CALLS = []\n"
        "@dataclass(frozen=True)\n"
        "class Task:\n"
        "    test: Callable\n"
        "TASKS = {'one': Task(lambda: CALLS.append(1) or CALLS)}\n"
    )
    task = load_tasks(tmp_path)["one"]
    task.test()
    assert task.test() == [1]


def test_json_has_no_infinity(tmp_path: Path) -> None:
    score = Score("t", "float32", math.inf, 99.0, 0, 3, 0.0)
    pair = SameOps("t", "tool a", peer_same=Figure(30.0, 1.0), ours_same=Figure(31.5, 1.0))
    write(tmp_path / "out.json", [score], [pair])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["scores"][0]["sqnr"] is None
    assert found["same_ops"][0]["gain"] == pytest.approx(1.5)
    assert found["same_ops"][0]["ours"] == {"sqnr": None, "score": None}
