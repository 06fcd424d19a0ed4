"""Running the command line in this process, and small files to run it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fusewright.cli import main

MODELS = Path(__file__).resolve().parents[2] / "models"


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code and the two streams."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `fusewright ARGUMENTS...` in this process."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return Outcome(code, streams.out, streams.err)

    return run


@pytest.fixture(scope="session")
def digits() -> Path:
    """The digits CNN: one dynamic input `input` [batch, 1, 8, 8], 10 groups, 9 quantized."""
    return MODELS / "digits_cnn.onnx"


@pytest.fixture(scope="session")
def calib() -> Path:
    """Its calibration data."""
    return MODELS / "digits_cnn_calib.npz"


@pytest.fixture
def samples() -> np.ndarray:
    """Eight random samples that fit the digits CNN."""
    return np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory, digits: Path, calib: Path) -> Path:
    """The digits CNN, quantized on 16 samples."""
    out = tmp_path_factory.mktemp("quantized") / "int8.onnx"
    assert main(["optimize", str(digits), "--calib", str(calib), "-o", str(out), "-q",
                 "--samples", "16"]) == 0  # fmt: skip
    return out
