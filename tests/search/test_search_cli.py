"""`fusewright optimize --search`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusewright.cli import main

MODELS = Path(__file__).resolve().parents[2] / "models"


def _arguments(folder: Path, *more: str) -> list[str]:
    model, calib = MODELS / "digits_cnn.onnx", MODELS / "digits_cnn_calib.npz"
    out = str(folder / "out.onnx")
    return ["optimize", str(model), "--calib", str(calib), "--samples", "8", "-o", out, *more]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--search", "fast"), "off, plan, latency"),
        (("--search-budget", "5"), "--search-budget without a search"),
        (("--search-journal", "j"), "a search journal without a search"),
        (("--search", "plan", "--search-budget", "-1"), "a search budget of -1 s"),
        (("--search", "plan", "--precision", "fp16"), "no Q/DQ pairs to place"),
    ],
)
def test_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], says: str
) -> None:
    assert main(_arguments(tmp_path, *more)) == 2
    said = capsys.readouterr().err
    assert says in " ".join(said.split())
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_journal_that_is_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = str(tmp_path / "out.onnx")
    assert main(_arguments(tmp_path, "--search", "plan", "--search-journal", journal)) != 0
    assert "is also what --output names" in " ".join(capsys.readouterr().err.split())


def test_shows_the_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    report = tmp_path / "report.json"
    more = ("--search", "plan", "--search-budget", "2", "--json", str(report))
    assert main(_arguments(tmp_path, *more)) == 0
    streams = capsys.readouterr()
    assert "Search" in streams.out
    assert "search by tensorrt_rtx" in streams.out
    assert "1/" in streams.err, "each trial is told as it ends"
    found = json.loads(report.read_text())["search"]
    assert found["best"]["kernels"] <= found["rules"]["kernels"]
    assert (tmp_path / "out.onnx.search.jsonl").exists()
