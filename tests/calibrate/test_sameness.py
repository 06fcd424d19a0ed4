"""Calibration data that shows nothing is said to: constant inputs, one sample many times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net

from fusewright import optimize
from fusewright.calibrate.sameness import SampleVariety, sameness_notes

_RANDOM = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
_ZEROS = np.zeros_like(_RANDOM)
_GREYS = _ZEROS + np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
_REPEATED = np.repeat(_RANDOM[:1], 4, axis=0)


def _seen(data: np.ndarray, batch: int = 1) -> SampleVariety:
    watched = SampleVariety(batch)
    for start in range(0, len(data), batch):
        watched.update(data[start : start + batch])
    return watched


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize(
    ("data", "note"),
    [
        (_ZEROS, "input 'x' holds 0 alone in all of the 4 calibration samples: "),
        (_ZEROS + 0.5, "input 'x' holds 0.5 alone in all of the 4 calibration samples: "),
        (_GREYS, "input 'x' holds one value in each of the 4 calibration samples: "),
        (_REPEATED, "the 4 calibration samples are all the same: "),
        (_RANDOM, None),
    ],
    ids=["black", "grey", "greys", "repeated", "varied"],
)
def test_what_is_said(data: np.ndarray, note: str | None, batch: int) -> None:
    notes = sameness_notes({"x": _seen(data, batch)})
    assert [n[: len(note or "")] for n in notes] == ([] if note is None else [note])


def test_one_input_that_differs_is_enough() -> None:
    assert not sameness_notes({"x": _seen(_REPEATED), "y": _seen(_RANDOM)})
    (note,) = sameness_notes({"x": _seen(_RANDOM), "y": _seen(_ZEROS)})
    assert note.startswith("input 'y' holds 0 alone")


def test_a_number_and_a_single_sample_are_no_reason() -> None:
    steps = np.full((4, 1), 0.1, np.float32)
    assert not sameness_notes({"x": _seen(_RANDOM), "step": _seen(steps)})
    assert not sameness_notes({"x": _seen(_RANDOM[:1])})
    assert not sameness_notes({})


def test_the_report_has_the_note(tmp_path: Path) -> None:
    net = Net()
    path = tmp_path / "net.onnx"
    onnx.save(net.proto(net.op("Relu", net.conv(net.input("x", 1, 3, 8, 8), 4, 3))), path)
    (note,) = [n for n in optimize(path, None, {"x": _ZEROS}).notes if "calibration" in n]
    assert note.startswith("input 'x' holds 0 alone in all of the 4 calibration samples")
    assert not [n for n in optimize(path, None, {"x": _RANDOM}).notes if "calibration" in n]
