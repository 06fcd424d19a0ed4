"""Ctrl-C, SIGTERM and a closed pipe, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

FUSEWRIGHT = [sys.executable, "-m", "fusewright"]


@contextmanager
def _calibrating(model, out, temporary) -> Iterator[subprocess.Popen[str]]:
    """A run that has begun to calibrate, on more samples than it will see; it ends with this."""
    command = ["optimize", str(model), "-o", str(out / "o.onnx"), "--json", str(out / "o.json")]
    process = subprocess.Popen(
        [*FUSEWRIGHT, *command, "--random-data", "--samples", "100000000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    try:
        assert process.stderr is not None
        seen = [process.stderr.readline() for _ in range(6)]
        assert seen[-1].startswith("collapse"), seen  # calibration comes next
        time.sleep(0.5)
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate()


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
    with _calibrating(digits, out, temporary) as process:
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout, stderr) == (code, "", f"{word}\n")
    # onnxruntime keeps a file `.ses` of its own there.
    left = [path for path in temporary.iterdir() if path.name != ".ses"]
    assert not list(out.iterdir()) and not left


def test_nohup_is_obeyed(digits, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _calibrating(digits, tmp_path, tmp_path) as process:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
            assert process.returncode == 143
    finally:
        signal.signal(signal.SIGHUP, before)


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


def test_a_signal_that_comes_out_as_something_else(cli, digits, tmp_path, monkeypatch):
    """While a C++ module loads, its loader makes an ImportError of it; here a reader does."""
    (tmp_path / "loader.py").write_text(
        "import os, signal\n"
        "def feeds():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        [None for _ in range(1000)]\n"
        "    except BaseException:\n"
        "        pass\n"
        "    raise ImportError('initialization failed')\n"
    )
    monkeypatch.chdir(tmp_path)
    done = cli("optimize", digits, "-o", "o.onnx", "--calib", "loader:feeds", "-q")
    assert (done.code, done.out, done.err) == (130, "", "interrupted\n")


def test_an_interrupt_of_the_readers_own_is_one_line(cli, digits, tmp_path, monkeypatch):
    (tmp_path / "stopping.py").write_text("def feeds():\n    raise KeyboardInterrupt\n")
    monkeypatch.chdir(tmp_path)
    done = cli("optimize", digits, "-o", "o.onnx", "--calib", "stopping:feeds", "-q")
    assert (done.code, done.out, done.err) == (130, "", "interrupted\n")


def test_a_signal_after_the_work_is_done_changes_nothing(digits, tmp_path):
    """Python's own shutdown takes a tenth of a second; here what it runs sends the signal."""
    program = (
        "import atexit, os, signal, sys\n"
        "from fusewright.cli import run_and_exit\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        f"sys.argv = ['fusewright', 'plan', {str(digits)!r}, '-o', 'p.yaml']\n"
        "run_and_exit()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.yaml"]
