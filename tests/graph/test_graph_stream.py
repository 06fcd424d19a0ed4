"""A model with weights in other files, written as one: what protobuf itself would have written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net, assert_equal
from onnx.external_data_helper import load_external_data_for_model

from fusewright.graph.convert import to_proto
from fusewright.graph.save import save
from fusewright.graph.workspace import Workspace, store_large


def _net() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 16, 8, 8), 32, 16))
    proto = net.proto(net.conv(x, 16, 32))
    proto.doc_string, proto.graph.doc_string = "a net", "its text"
    proto.metadata_props.add(key="classes", value="cat,dog")
    return proto


@pytest.fixture
def stored() -> tuple[onnx.ModelProto, Workspace]:
    workspace = Workspace()
    graph = gs.import_onnx(_net())
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant):
            tensor.values = np.array(tensor.values)  # in memory, as a rewrite leaves it
    store_large(graph, workspace)
    return to_proto(graph), workspace


def test_one_file_with_everything(
    stored: tuple[onnx.ModelProto, Workspace], tmp_path: Path
) -> None:
    proto, workspace = stored
    external = [t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert external
    before = proto.SerializeToString(deterministic=True)
    save(proto, tmp_path / "one.onnx", workspace)
    save(proto, tmp_path / "two.onnx", workspace)
    assert proto.SerializeToString(deterministic=True) == before
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.onnx", "two.onnx"]
    found = onnx.load(tmp_path / "one.onnx", load_external_data=False)
    onnx.checker.check_model(found, full_check=True)
    load_external_data_for_model(proto, str(workspace.folder))
    assert found == proto
    assert_equal(_net(), found)


def test_the_graph_is_one_field(stored: tuple[onnx.ModelProto, Workspace], tmp_path: Path) -> None:
    """Readers that are no protobuf library do not merge a message that comes in parts."""
    proto, workspace = stored
    save(proto, tmp_path / "one.onnx", workspace)
    data, graphs, position = (tmp_path / "one.onnx").read_bytes(), 0, 0
    while position < len(data):
        key, position = _varint(data, position)
        value, position = _varint(data, position)
        graphs += key >> 3 == 7
        position += value if key & 7 == 2 else 0
    assert graphs == 1


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if byte < 0x80:
            return value, position


def test_without_a_workspace_references_stay(
    stored: tuple[onnx.ModelProto, Workspace], tmp_path: Path
) -> None:
    proto, workspace = stored
    save(proto, workspace.folder / "light.onnx")
    assert (workspace.folder / "light.onnx").stat().st_size < 4096
    assert np.array_equal(
        onnx.numpy_helper.to_array(onnx.load(workspace.folder / "light.onnx").graph.initializer[0]),
        onnx.numpy_helper.to_array(_net().graph.initializer[0]),
    )
