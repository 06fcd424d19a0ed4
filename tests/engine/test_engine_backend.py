"""Finding TensorRT, or saying what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fusewright.engine import backend as backends
from fusewright.engine.backend import available_backends, find_backend
from fusewright.errors import EngineError, UsageError

FAKE_WITHOUT_GPU = """
__version__ = "11.4.0"
class ILogger:
    def __init__(self): pass
class _Severity:
    name = "INTERNAL_ERROR"
def Builder(logger):
    logger.log(_Severity, "CUDA initialization failure with error: 35\\nmore")
    raise TypeError("pybind11::init(): factory function returned nullptr")
"""


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def fake_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `tensorrt` on the path; its text is written by the test."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    yield tmp_path / "tensorrt.py"
    sys.modules.pop("tensorrt", None)


def test_importing_the_package_imports_no_tensorrt() -> None:
    code = (
        "import sys, fusewright.engine.build, fusewright.engine.trtexec;"
        "sys.exit(any(name.startswith('tensorrt') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match=r"'openvino'.*tensorrt or tensorrt_rtx"):
        find_backend("openvino")


@pytest.mark.parametrize(
    ("name", "extra"),
    [("tensorrt", "tensorrt"), ("tensorrt_rtx", "rtx"), ("tensorrt-rtx", "rtx")],
)
def test_a_missing_backend_says_what_to_install(no_tensorrt: None, name: str, extra: str) -> None:
    with pytest.raises(EngineError, match=rf"pip install 'fusewright\[{extra}\]'"):
        find_backend(name)


def test_nothing_installed(no_tensorrt: None) -> None:
    assert available_backends() == ()
    with pytest.raises(EngineError, match=r"fusewright\[tensorrt\].*fusewright\[rtx\]"):
        find_backend()


def test_full_tensorrt_without_a_gpu(fake_tensorrt: Path) -> None:
    fake_tensorrt.write_text(FAKE_WITHOUT_GPU)
    with pytest.raises(EngineError, match=r"11.4.0 cannot build here.*GPU.*error: 35$"):
        find_backend("tensorrt")
    assert "tensorrt" not in [backend.name for backend in available_backends()]


def test_full_tensorrt_that_does_not_load(fake_tensorrt: Path) -> None:
    fake_tensorrt.write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    with pytest.raises(EngineError, match="does not load: libnvinfer"):
        find_backend("tensorrt")


def test_a_usable_tensorrt_comes_first(fake_tensorrt: Path) -> None:
    fake_tensorrt.write_text(
        "__version__ = '11'\nclass ILogger:\n    pass\ndef Builder(logger): return object()\n"
    )
    assert find_backend().name == "tensorrt"
    assert available_backends()[0].name == "tensorrt"


def test_rtx_is_found() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    found = find_backend("tensorrt-rtx")
    assert found.is_rtx and found.version.startswith(found.module.__version__)
    assert "tensorrt_rtx" in [backend.name for backend in available_backends()]
