"""Where a command ends with an error, none of its files is there; a closed pipe is no error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusewright.errors import OutputError
from fusewright.graph.save import Pending

FUSEWRIGHT = [sys.executable, "-m", "fusewright"]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def _optimize(digits: Path, calib: Path, folder: Path) -> list[str]:
    command = ["optimize", digits, "--calib", calib, "--samples", 2, "-o", folder / "o.onnx"]
    return [*FUSEWRIGHT, *map(str, command)]


def _commands(digits: Path, calib: Path, folder: Path) -> dict[str, list[str]]:
    optimize = _optimize(digits, calib, folder)
    return {
        "optimize": optimize,
        "optimize, with a report": [*optimize, "--json", str(folder / "o.json")],
        "plan": [*FUSEWRIGHT, "plan", str(digits), "-o", str(folder / "o.yaml")],
    }


@needs_full
@pytest.mark.parametrize("name", ["optimize", "optimize, with a report", "plan"])
def test_stdout_on_a_full_disk(name: str, digits: Path, calib: Path, tmp_path: Path) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            _commands(digits, calib, tmp_path)[name],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["optimize", "optimize, with a report", "plan"])
def test_a_reader_that_goes_away(name: str, digits: Path, calib: Path, tmp_path: Path) -> None:
    """`fusewright optimize … | head -1`: what it prints is a summary of the files it writes."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        _commands(digits, calib, tmp_path)[name],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert "Exception" not in done.stderr and "error" not in done.stderr
    assert len(list(tmp_path.iterdir())) == (2 if "report" in name else 1)


@pytest.mark.parametrize("option", ["--json", "--build"])
def test_a_file_beside_it_that_cannot_be_written(option, cli, digits, calib, tmp_path, monkeypatch):
    """Whichever of several files the disk refuses, none appears, and an old one stays."""
    if option == "--build":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    write = Pending.write

    def full(self: Pending, target: Path, data: bytes | memoryview) -> None:
        if target.suffix == ".json":  # the report, or that of the engine
            raise OutputError(f"{target}: cannot be written: No space left on device")
        write(self, target, data)

    monkeypatch.setattr(Pending, "write", full)
    (tmp_path / "o.onnx").write_bytes(b"old")
    outcome = cli("optimize", digits, "--calib", calib, "--samples", 2, "-q",
                  "-o", tmp_path / "o.onnx", option, tmp_path / "beside.json")  # fmt: skip
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["o.onnx"]
    assert (tmp_path / "o.onnx").read_bytes() == b"old"
