"""External data: read where it lies in the folder of the model, else refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusewright.errors import ModelError
from fusewright.graph.load import load_weights, read_source
from fusewright.pipeline import inspect

VALUES = np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3) / 7


def _stored(location: str, **more: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=VALUES.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _model(folder: Path, tensor: TensorProto, *, twice: bool = False) -> Path:
    """A convolution; with two nodes of one name its file is not given to onnxruntime as it is."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "n"),
        helper.make_node("Relu", ["a"], ["y"], "n" if twice else "m"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [tensor])
    path = folder / "net.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def _beside(folder: Path, *, size: int = VALUES.nbytes) -> None:
    (folder / "w.bin").write_bytes(VALUES.tobytes().ljust(size, b"\0")[:size])


def _outside(folder: Path) -> TensorProto:
    (folder.parent / "outside.bin").write_bytes(VALUES.tobytes())
    return _stored("../outside.bin")


def _absolute(folder: Path) -> TensorProto:
    _outside(folder)
    return _stored(str(folder.parent / "outside.bin"))


def _linked_out(folder: Path) -> TensorProto:
    _outside(folder)
    (folder / "w.bin").symlink_to(folder.parent / "outside.bin")
    return _stored("w.bin")


def _with(size: int = 1000, **more: object) -> Callable[[Path], TensorProto]:
    def make(folder: Path) -> TensorProto:
        _beside(folder, size=size)
        return _stored("w.bin", **more)

    return make


def _folder_there(folder: Path) -> TensorProto:
    (folder / "w.bin").mkdir()
    return _stored("w.bin")


REFUSED = {
    "outside": (_outside, "outside the model's folder"),
    "absolute": (_absolute, "absolute path"),
    "a link to outside": (_linked_out, "outside the model's folder"),
    "too short": (_with(100), "too short: tensor 'w' ends at byte 432, the file at 100"),
    "offset behind the end": (_with(500, offset=100), "ends at byte 532, the file at 500"),
    "negative offset": (_with(offset=-4), "offset '-4'"),
    "offset no number": (_with(offset="abc"), "offset 'abc'"),
    "length of another shape": (_with(length=400), "400 bytes, its shape and type"),
    "no name": (lambda _: _stored(""), "names no file"),
    "a folder": (_folder_there, "is missing"),
    "no file can be named so": (lambda _: _stored("a\0b"), r"'a\x00b'"),
    "a name too long": (lambda _: _stored("a" * 5000), "cannot be found"),
}


@pytest.mark.parametrize("twice", [False, True], ids=["as it is", "rewritten"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, twice: bool, tmp_path: Path) -> None:
    make, words = REFUSED[name]
    folder = tmp_path / "model"
    folder.mkdir()
    path = _model(folder, make(folder), twice=twice)
    with pytest.raises(ModelError) as error:
        read_source(path)
    text = str(error.value)
    assert words in text and text.startswith(str(path)) and "\n" not in text
    assert "'w'" in text


@pytest.mark.parametrize("twice", [False, True], ids=["as it is", "rewritten"])
@pytest.mark.parametrize("how", ["plain", "offset", "hard link", "folder inside", "hub's cache"])
def test_read(how: str, twice: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tensor = _stored("w.bin")
    if how == "offset":
        (folder / "w.bin").write_bytes(b"\0" * 64 + VALUES.tobytes())
        tensor = _stored("w.bin", offset=64)
    elif how == "folder inside":
        (folder / "data").mkdir()
        (folder / "data" / "w.bin").write_bytes(VALUES.tobytes())
        tensor = _stored("data/w.bin")
    else:
        _beside(folder)
    path = _model(folder, tensor, twice=twice)
    if how == "hard link":
        os.link(folder / "w.bin", folder / "w2.bin")
    if how == "hub's cache":  # snapshots hold links to blobs
        snapshot = tmp_path / "snapshot"
        snapshot.mkdir()
        for name in ("net.onnx", "w.bin"):
            (snapshot / name).symlink_to(folder / name)
        path = snapshot / "net.onnx"
    loaded = load_weights(read_source(path))
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), VALUES)
    assert len(inspect(path).groups) == 1
