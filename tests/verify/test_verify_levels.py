"""What onnxruntime's optimizer makes of a file is told, with the optimizer and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from building import Net

from fusewright.verify import LEVELS, Comparison, LevelCheck, Reference

_FEEDS = [
    {"x": np.random.default_rng(i).standard_normal((1, 4, 6, 6)).astype(np.float32)}
    for i in range(3)
]


def _net(pairs: bool, weight: float = 1.0, clipped: bool = False) -> onnx.ModelProto:
    """x → pair → Conv (its weight behind a pair) → Relu or Clip → pair → Neg; or without pairs."""
    net = Net(19)
    zero = np.zeros((), np.int8)
    if clipped:
        zero = onnx.numpy_helper.to_array(
            onnx.helper.make_tensor("z", onnx.TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
        )

    def pair(tensor: str, scale: float) -> str:
        if not pairs:
            return tensor
        made = [net.store(scale), net.store(zero, dtype=None)]
        return net.op("DequantizeLinear", net.op("QuantizeLinear", tensor, *made), *made)

    x = net.input("x", 1, 4, 6, 6)
    drawn = net.stored[net.draw(4, 4, 3, 3)] * np.float32(weight)
    stored = pair(net.store(drawn), 0.01 * weight)
    x = net.op("Conv", pair(x, 0.05), stored, net.positive(4), pads=[1, 1, 1, 1])
    x = net.op("Clip", x, 0.0, 1.0) if clipped else net.op("Relu", x)
    return net.proto(net.op("Neg", pair(x, 0.05), name="end"))


def _notes(folder: Path, levels: tuple[str, ...] = LEVELS, **options: Any) -> list[str]:
    proto, reference = _net(True, **options), Reference(_net(False, **options), _FEEDS)
    onnx.save(proto, folder / "net.onnx")
    check = LevelCheck(folder / "net.onnx", reference)
    return check.notes(check.open(levels), reference.compare(proto))


def test_nothing_is_told_of_what_is_right(tmp_path: Path) -> None:
    assert _notes(tmp_path) == []


def test_a_lost_bias_is_told_once_for_all_levels(tmp_path: Path) -> None:
    (note,) = _notes(tmp_path, weight=1e-9)
    assert "ORT_ENABLE_ALL and ORT_ENABLE_EXTENDED and ORT_ENABLE_BASIC gives" in note
    assert "disabled_optimizers=['WeightBiasQuantization']" in note


def test_a_model_that_does_not_open_is_told_with_the_reason(tmp_path: Path) -> None:
    (note,) = _notes(tmp_path, clipped=True)
    assert "does not run the result (" in note
    assert "disabled_optimizers=['ClipQuantRewrite']" in note


def test_only_the_levels_that_are_looked_at_are_told(tmp_path: Path) -> None:
    (note,) = _notes(tmp_path, LEVELS[:1], weight=1e-9)
    assert note.startswith("onnxruntime at ORT_ENABLE_ALL, its default, gives")


def test_what_runs_at_no_level_is_one_note(tmp_path: Path) -> None:
    runs = _net(True)
    reference = Reference(runs, _FEEDS)
    net = Net()
    refused = net.proto(net.op("Plugin", net.input("x", 1, 4, 6, 6), domain="somewhere"))
    onnx.save(refused, tmp_path / "net.onnx")
    check = LevelCheck(tmp_path / "net.onnx", reference)
    (note,) = check.notes(check.open(LEVELS), reference.compare(runs))
    assert note.startswith("onnxruntime cannot run the result at any level: ")


@pytest.mark.parametrize(("factor", "count"), [(1.5, 0), (30.0, 1)])
def test_another_rounding_is_no_fault(factor: float, count: int, tmp_path: Path) -> None:
    """The measured error says what is far: a level may be twice as far off."""
    proto = _net(True, weight=1e-9)
    onnx.save(proto, tmp_path / "net.onnx")
    reference = Reference(proto, _FEEDS)
    check = LevelCheck(tmp_path / "net.onnx", reference)
    opened = check.open(LEVELS[:1])
    (output,) = opened[0].comparison.outputs
    allowed = type(output)(output.name, output.relative / factor)
    assert len(check.notes(opened, Comparison((allowed,)))) == count
