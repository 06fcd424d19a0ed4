"""Inputs that hold sizes: their values come from the samples, or from declared shapes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net

from fusewright import RandomSamples, optimize
from fusewright.cli import main
from fusewright.errors import UsageError
from fusewright.graph.load import read_source
from fusewright.pipeline.sizes import seen_sizes

SIZES = np.array([[12, 9], [6, 30], [10, 8]])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Resizes to what `size` says."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 4, 4))
    sizes = net.op("Concat", [1, 4], net.input("size", 2, dtype=np.int64), axis=0)
    y = net.op("Resize", x, None, None, sizes, mode="nearest")
    onnx.save(net.proto(y), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def _feeds() -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    for size in SIZES:
        yield {"x": random.standard_normal((1, 4, 8, 8)).astype(np.float32), "size": size}


def test_the_smallest_the_middle_and_the_largest_of_each() -> None:
    assert seen_sizes(["size"], _feeds()) == {"size": ((6, 8), (10, 9), (12, 30))}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_result_knows_what_its_samples_hold(precision: str, model: Path) -> None:
    result = optimize(model, None, list(_feeds()), precision=precision)
    assert result.sizes == {"size": ((6, 8), (10, 9), (12, 30))}
    once = optimize(model, None, _feeds(), precision=precision)
    assert once.sizes == {"size": ((12, 9),) * 3}, "a generator gives them once"


def test_random_samples_take_them_from_declared_shapes(model: Path) -> None:
    inputs = read_source(model).interface.inputs
    first, second = RandomSamples(2, shapes={"size": (5, 7)}).feeds(inputs)
    assert first["size"].tolist() == second["size"].tolist() == [5, 7]
    assert first["size"].dtype == np.int64 and first["x"].shape == (1, 4, 8, 8)
    result = optimize(model, None, RandomSamples(2, shapes={"size": (5, 7)}))
    assert not result.sizes, "random numbers say nothing"
    with pytest.raises(UsageError, match=r"values \(5,\) for input 'size' \[2\]: it holds 2"):
        optimize(model, None, RandomSamples(2, shapes={"size": (5,)}))


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_an_engine_is_built_for_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for i, feed in enumerate(_feeds()):
        np.savez(folder / f"{i}.npz", **feed)
    command = ["optimize", str(model), "-o", str(tmp_path / "o.onnx"), "--calib", str(folder)]
    assert main([*command, "--build", str(tmp_path / "e.engine")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "input 'size' holds sizes, and the engine takes those of the samples" in said
    assert "6x8:10x9:12x30" in said
