"""A scale with as many channels as a small weight has elements is no weight itself."""

from __future__ import annotations

from pathlib import Path

import onnx
from building import Net

from fusewright import RandomSamples, optimize

CHANNELS = 20_000


def test_a_head_of_many_classes(tmp_path: Path) -> None:
    """ImageNet-21k's head, in INT8 with a float rest: its scales take 80 KB."""
    net = Net()
    path = tmp_path / "head.onnx"
    onnx.save(net.proto(net.op("MatMul", net.input("x", 2, 8), net.draw(8, CHANNELS))), path)
    result = optimize(path, None, RandomSamples(3), precision="int8")
    assert result.accuracy is not None
    assert result.accuracy.worst.relative < 0.05
