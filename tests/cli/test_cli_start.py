"""Starting: nothing heavy is imported before a command runs; help, version, wrong use."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

import fusewright
from fusewright.cli import edge

HEAVY = ["numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "torch", "tensorrt", "tensorrt_rtx"]


@pytest.mark.parametrize(
    "code",
    [
        "import fusewright",
        "from fusewright.cli import main; main(['--help'])",
        "from fusewright.cli import main; main(['--version'])",
        "from fusewright.cli import main; main(['optimize', '--help'])",
        "from fusewright.cli import main; main(['build'])",
    ],
)
def test_nothing_heavy_is_imported(code):
    text = f"{code}\nimport json, sys\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_called_from_python_it_leaves_the_collector_as_it_was(cli):
    before = gc.get_threshold()
    assert cli("--version").code == 0
    assert gc.get_threshold() == before


def test_version(cli):
    outcome = cli("--version")
    assert (outcome.code, outcome.out) == (0, f"fusewright {fusewright.__version__}\n")


def test_module_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "fusewright", "--version"], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"fusewright {fusewright.__version__}\n")


def test_no_command_shows_the_help(cli):
    outcome = cli()
    assert outcome.code == 2
    for name in ("optimize", "inspect", "plan", "compare", "build"):
        assert name in outcome.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["squeeze"], "squeeze"),
        (["optimize"], "MODEL.onnx"),
        (["optimize", "m.onnx"], "--output"),
        (["inspect", "a.onnx", "b.onnx"], "b.onnx"),
        (["build", "m.onnx"], "-o ENGINE"),
        (["compare", "a.onnx", "b.onnx"], "--data"),
    ],
)
def test_wrong_use_is_one_line_and_2(arguments, said, cli):
    outcome = cli(*arguments)
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert said in outcome.err


def test_a_bug_is_one_line_and_its_traceback_on_demand(cli, monkeypatch):
    def broken(arguments):
        raise KeyError("lost\nname")

    monkeypatch.setattr(edge, "_invoke", broken)
    outcome = cli("inspect", "m.onnx")
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: KeyError: ") and "--debug" in outcome.err
    outcome = cli("inspect", "m.onnx", "--debug")
    assert outcome.code == 1 and "Traceback" in outcome.err and "broken" in outcome.err


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left", "/full/o.onnx")])
def test_the_machine_s_limits_are_no_bugs(error, cli, monkeypatch):
    def limited(arguments):
        raise error

    monkeypatch.setattr(edge, "_invoke", limited)
    outcome = cli("inspect", "m.onnx")
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert "bug" not in outcome.err
    assert outcome.err in ("error: out of memory\n", "error: /full/o.onnx: No space left\n")
