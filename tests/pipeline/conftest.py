"""The small net as a file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from small_net import small_net


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(small_net(), path)
    return path
