"""Whole reports from files: what is missing, or of another type, is named in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusewright.engine.kernels import Kernel, TensorType
from fusewright.engine.read import read_report
from fusewright.engine.report import EngineReport, Finding, GroupReport, KernelReport
from fusewright.errors import EngineError

Change = Callable[[dict[str, Any]], object]


def _report() -> EngineReport:
    ends = (TensorType("x", "Half", (1, 8)),)
    kernel = Kernel("k", "gemm", ends, ends, (), ("fc",), "tactic")
    made_up = Kernel("copy", "kgen", ends, ends, (), ())
    return EngineReport(
        model="m.onnx",
        engine="e",
        backend="tensorrt_rtx",
        version="1.7",
        seconds=2,
        engine_bytes=5,
        profiles={"x": ((1, 8), (2, 8), (4, 8))},
        kernels=(
            KernelReport(kernel, "gemm", "Half", ("fc",), ("fc",), milliseconds=0.25),
            KernelReport(made_up, None, None, ("fc",), ("fc",), inferred=True),
        ),
        operators={"fc": "Half"},
        notes=("a note",),
        groups=(GroupReport("fc", "Linear", None, ("Half",), (0, 1), False, (), (), None),),
        findings=(Finding("layout-change", (1,), ("fc",), ("fc",), "Half", 32),),
    )


def _written(folder: Path, change: Change | None = None) -> Path:
    plain = _report().to_dict()
    if change is not None:
        change(plain)
    path = folder / "e.layers.json"
    path.write_text(json.dumps(plain))
    return path


def test_a_report_is_read_as_it_was(tmp_path: Path) -> None:
    assert read_report(_written(tmp_path)) == _report()


def _set(*keys: str | int, to: object) -> Change:
    def change(plain: Any) -> None:
        for key in keys[:-1]:
            plain = plain[key]
        plain[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plain: plain.pop("version"), "it lacks 'version'"),
        (lambda plain: plain["groups"][0].pop("kind"), "groups[0] lacks 'kind'"),
        (_set("kernels", to="x"), "kernels is 'x'"),
        (_set("kernels", 0, to=7), "kernels[0] is 7"),
        (_set("kernels", 0, "inputs", 0, "shape", to="ab"), "kernels[0].inputs[0].shape is 'ab'"),
        (_set("kernels", 0, "inferred", to=1), "kernels[0].inferred is 1"),
        (_set("seconds", to="x"), "seconds is 'x'"),
        (_set("seconds", to=True), "seconds is True"),
        (_set("profiles", to=3), "profiles is 3"),
        (_set("profiles", "x", to=[[1]]), "profiles.x is [[1]]"),
        (_set("notes", to="n" * 99), "notes is '" + "n" * 39 + "…"),
        (_set("groups", 0, "kernels", to=[9]), "it names 9, which is not there"),
        (_set("findings", 0, "kernels", to=[-1]), "it names -1"),
        (_set("findings", 0, "cause", to="odd"), "it names 'odd', which is not there"),
    ],
)
def test_what_is_wrong_is_named(change: Change, said: str, tmp_path: Path) -> None:
    path = _written(tmp_path, change)
    with pytest.raises(EngineError) as caught:
        read_report(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: not a whole report of fusewright build: {said}")
    assert "\n" not in text


def test_json_that_is_too_deep(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(EngineError, match=r"deep\.json: not a JSON file"):
        read_report(tmp_path / "deep.json")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"Inputs": []}, "a row lacks 'Name'"),
        ({"Name": "a", "Inputs": [{"Name": "x", "Dimensions": ["q"]}]}, "invalid literal"),
    ],
)
def test_rows_of_trtexec_that_cannot_be(row: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps({"Layers": [row]}))
    with pytest.raises(EngineError, match=f"not a layer file of trtexec: {said}"):
        read_report(tmp_path / "l.json")
