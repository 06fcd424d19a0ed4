"""Ctrl-C, SIGTERM and a closed pipe, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from fusewright.cli.edge import Stopped, _stop_behind

FUSEWRIGHT = [sys.executable, "-m", "fusewright"]


def _calibrating(model, out, temporary) -> subprocess.Popen[str]:
    """A run that has begun to calibrate on more samples than it will ever see."""
    command = ["optimize", str(model), "-o", str(out / "o.onnx"), "--json", str(out / "o.json")]
    process = subprocess.Popen(
        [*FUSEWRIGHT, *command, "--random-data", "--samples", "100000000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stderr is not None
    seen = [process.stderr.readline() for _ in range(6)]
    assert seen[-1].startswith("collapse"), seen  # calibration comes next
    time.sleep(0.5)
    assert process.poll() is None
    return process


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),  # the terminal was closed
    ],
)
def test_a_signal_half_way_leaves_nothing(number, code, word, digits, tmp_path):
    temporary, out = tmp_path / "tmp", tmp_path / "out"
    temporary.mkdir()
    out.mkdir()
    process = _calibrating(digits, out, temporary)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout, stderr) == (code, "", f"{word}\n")
    # onnxruntime keeps a file `.ses` of its own there.
    left = [path for path in temporary.iterdir() if path.name != ".ses"]
    assert not list(out.iterdir()) and not left


def test_nohup_is_obeyed(digits, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = _calibrating(digits, tmp_path, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_a_reader_that_goes_away_is_no_traceback(digits):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [*FUSEWRIGHT, "inspect", str(digits), "--json"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr and "Exception" not in process.stderr


def test_a_chain_of_errors_that_comes_back_to_itself_ends() -> None:
    """As the build of a damaged file once raised it: the cause of each is the other."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert _stop_behind(first) is None
    second.__cause__ = Stopped(signal.SIGTERM)
    assert _stop_behind(first) is second.__cause__
