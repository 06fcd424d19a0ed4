"""Warnings of libraries and of a user's reader: a note of one line, and nothing under -q."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import MODELS

READER = """
import warnings
import numpy as np

def samples():
    warnings.warn("first line\\nsecond", UserWarning)
    yield {"input": np.nan_to_num(np.sqrt(-np.ones((1, 1, 8, 8), np.float32)))}
"""


@pytest.mark.parametrize("quiet", [False, True])
def test_a_warning_of_the_reader(
    quiet: bool, cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"warning_reader_{quiet}".lower()
    (tmp_path / f"{name}.py").write_text(READER)
    model = MODELS / "digits_cnn.onnx"
    done = cli("compare", model, model, "--data", f"{name}:samples", *(["-q"] if quiet else []))
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    if quiet:
        assert lines == []
    else:
        assert "note: first line second" in lines
        assert "note: invalid value encountered in sqrt" in lines
        assert not any(".py" in line for line in lines)
