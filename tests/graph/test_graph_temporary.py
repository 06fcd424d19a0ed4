"""A temporary folder that takes nothing is named, with what to do; the model is not blamed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net

from fusewright.errors import ModelError, OutputError
from fusewright.graph import clean as cleaning
from fusewright.graph.clean import clean
from fusewright.graph.save import save
from fusewright.graph.workspace import Workspace

SAID = "temporary files cannot be written to .*; set TMPDIR"


def _model(folder: Path) -> Path:
    net = Net()
    onnx.save(net.proto(net.op("Relu", net.input("x", 1, 4))), folder / "net.onnx")
    return folder / "net.onnx"


def test_what_the_stages_store(tmp_path: Path) -> None:
    workspace = Workspace()
    shutil.rmtree(workspace.folder)
    with pytest.raises(OutputError, match=SAID):
        workspace.put(gs.Constant("w", np.zeros(1)), np.zeros(1000, np.float32))
    with pytest.raises(OutputError, match=SAID):
        save(onnx.load(_model(tmp_path)), workspace.folder / "flat.onnx")


@pytest.mark.parametrize("free", [0, 1 << 30])
def test_what_onnxruntime_writes(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says `Protobuf serialization failed`."""

    def fails(*_: object, **__: object) -> None:
        raise ModelError("onnxruntime cannot load the model: Protobuf serialization failed")

    monkeypatch.setattr(cleaning, "open_session", fails)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    kind, said = (ModelError, "Protobuf") if free else (OutputError, SAID)
    with pytest.raises(kind, match=said):
        clean(_model(tmp_path))
