"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fusewright.pipeline import quantizing

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def strict_linter() -> Iterator[None]:
    """What the Q/DQ linter refuses is an error in every test, as with `--strict`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizing, "relent", lambda *_, **__: [])
        yield


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Folder of real models and data that lies beside the checkout; skips where it is absent."""
    folder = Path(os.environ.get("FUSEWRIGHT_CORPUS", ROOT.parent / "shared" / "corpus"))
    if not folder.is_dir():
        pytest.skip(f"no corpus of real models at {folder} (set FUSEWRIGHT_CORPUS)")
    return folder


@pytest.fixture(scope="session")
def tasks(corpus: Path) -> ModuleType:
    """The corpus' `tasks.py`: calibration data and metric of its trained models."""
    spec = importlib.util.spec_from_file_location("corpus_tasks", corpus / "tasks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpus_tasks"] = module
    spec.loader.exec_module(module)
    return module
