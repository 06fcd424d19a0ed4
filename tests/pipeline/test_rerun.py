"""Stage by stage it begins anew where a rewrite is behind an error, and for nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from building import Net

from fusewright import optimize
from fusewright.errors import DataError, EngineError, FusewrightError, OutputError
from fusewright.pipeline import Result, finish, prepare, searching
from fusewright.pipeline.trace import Silent

IDS = np.zeros((40, 6), np.int64)
# Of a table of 16 rows, in a sample behind those that every rewrite is proven on.
BAD = IDS.copy()
BAD[37, 2] = 999


class _Stages(Silent):
    """Counts the stages that begin."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()

    def stage(self, name: str, detail: str, seconds: float) -> None:
        self.ended[name] += 1


def _net() -> onnx.ModelProto:
    """Rows of a table, a norm with outliers (smoothed: a pass over the data) and two Linears."""
    net = Net(opset=20)
    gamma = net.random.uniform(0.5, 1.5, 32)
    gamma[[3, 17]] *= 40.0
    ids = net.input("ids", "batch", 6, dtype=np.int64)
    x = net.op("Gather", net.draw(16, 32), ids)
    x = net.op("LayerNormalization", x, net.store(gamma, "gamma"), net.draw(32), axis=-1)
    x = net.op("Relu", net.op("MatMul", x, net.draw(32, 32), name="first"))
    return net.proto(net.op("MatMul", x, net.draw(32, 8), name="second"))


def _run(folder: Path, data: Any, **settings: Any) -> tuple[Result | FusewrightError, Counter[str]]:
    onnx.save(_net(), folder / "net.onnx")
    stages = _Stages()
    try:
        return optimize(
            folder / "net.onnx", folder / "o.onnx", data, stages, **settings
        ), stages.ended
    except FusewrightError as error:
        return error, stages.ended


@pytest.mark.parametrize("settings", [{}, {"smooth": "off"}, {"smooth": 0.5}], ids=str)
def test_bad_data_is_not_run_twice(tmp_path: Path, settings: dict[str, Any]) -> None:
    found, stages = _run(tmp_path, {"ids": BAD}, **settings)
    assert isinstance(found, DataError)
    assert "out of data bounds" in str(found)
    assert max(stages.values()) == 1, stages


def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OutputError("o.onnx: cannot be written: No space left on device")

    monkeypatch.setattr(finish, "save", full)
    found, stages = _run(tmp_path, {"ids": IDS})
    assert isinstance(found, OutputError)
    assert max(stages.values()) == 1, stages


def test_an_engine_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*_: object) -> None:
        raise EngineError("does not build")

    monkeypatch.setattr(searching, "find_judge", lambda *_: object())
    monkeypatch.setattr(searching, "search", search)
    found, stages = _run(tmp_path, {"ids": IDS}, search="plan")
    assert isinstance(found, EngineError)
    assert max(stages.values()) == 1, stages


def test_a_rewrite_that_does_not_run_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = prepare.clean

    def wrong(source: object, workspace: object) -> onnx.ModelProto:
        proto = clean(source)
        for tensor in proto.graph.initializer:
            if list(tensor.dims) == [16, 32]:
                rows = onnx.numpy_helper.to_array(tensor)[:, :31]
                tensor.CopyFrom(onnx.numpy_helper.from_array(rows, tensor.name))
        del proto.graph.value_info[:]
        return proto

    monkeypatch.setattr(prepare, "clean", wrong)
    found, stages = _run(tmp_path, {"ids": IDS})
    assert isinstance(found, Result)
    (event,) = found.trace.undone()
    assert event.stage == "clean"
    assert stages["clean"] == 2
