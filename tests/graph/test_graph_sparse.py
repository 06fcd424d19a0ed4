"""Sparse stored tensors are dense behind the loader, wherever they lie in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net, run
from onnx import TensorProto, helper, numpy_helper

from fusewright import RandomSamples, inspect, optimize
from fusewright.errors import ModelError
from fusewright.graph.load import load_weights, read_source

Where = Callable[[onnx.ModelProto, onnx.SparseTensorProto], None]


def _pruned() -> np.ndarray:
    random = np.random.default_rng(0)
    kept = random.random((16, 8)) > 0.7
    return np.asarray(random.standard_normal((16, 8)) * kept, np.float32)


def _sparse(array: np.ndarray, *, coordinates: bool = False) -> onnx.SparseTensorProto:
    at = np.argwhere(array) if coordinates else np.flatnonzero(array)
    values = numpy_helper.from_array(array[array != 0], "w")
    indices = numpy_helper.from_array(at.astype(np.int64), "w_at")
    return helper.make_sparse_tensor(values, indices, array.shape)


def _model() -> onnx.ModelProto:
    """x·w with a `w` that is not there yet."""
    net = Net(17)
    net.input("x", 2, 16)
    net.stored["w"] = _pruned()
    proto = net.proto(net.op("Relu", net.op("MatMul", "x", "w")))
    del proto.graph.initializer[:]
    return proto


def _initializer(proto: onnx.ModelProto, sparse: onnx.SparseTensorProto) -> None:
    proto.graph.sparse_initializer.append(sparse)


def _constant(sparse: onnx.SparseTensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["w"], "sparse", sparse_value=sparse)


def _node(proto: onnx.ModelProto, sparse: onnx.SparseTensorProto) -> None:
    proto.graph.node.insert(0, _constant(sparse))


def _function(proto: onnx.ModelProto, sparse: onnx.SparseTensorProto) -> None:
    nodes = [_constant(sparse), helper.make_node("MatMul", ["a", "w"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("local", "Product", ["a"], ["b"], nodes, opsets))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    call = helper.make_node(
        "Product", ["x"], list(proto.graph.node[0].output), "call", domain="local"
    )
    proto.graph.node[0].CopyFrom(call)


def _branch(stored: bool) -> Where:
    def put(proto: onnx.ModelProto, sparse: onnx.SparseTensorProto) -> None:
        result = proto.graph.node[0].output[0]
        value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2, 8])
        nodes = [helper.make_node("MatMul", ["x", "w"], ["inner"], "inside")]
        body = helper.make_graph(nodes, "body", [], [value])
        if stored:
            body.sparse_initializer.append(sparse)
        else:
            body.node.insert(0, _constant(sparse))
        proto.graph.input.append(helper.make_tensor_value_info("if", TensorProto.BOOL, []))
        branch = helper.make_node(
            "If", ["if"], [result], "branch", then_branch=body, else_branch=body
        )
        proto.graph.node[0].CopyFrom(branch)

    return put


WHERE: dict[str, Where] = {
    "initializer": _initializer,
    "constant": _node,
    "function": _function,
    "constant in a branch": _branch(stored=False),
    "initializer in a branch": _branch(stored=True),
}


def _saved(tmp_path: Path, where: Where, sparse: onnx.SparseTensorProto) -> Path:
    proto, path = _model(), tmp_path / "sparse.onnx"
    where(proto, sparse)
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize("where", WHERE)
def test_sparse_is_dense_behind_the_loader(where: str, coordinates: bool, tmp_path: Path) -> None:
    path = _saved(tmp_path, WHERE[where], _sparse(_pruned(), coordinates=coordinates))
    source = read_source(path)
    dense = load_weights(source)
    assert b"w_at" not in dense.SerializeToString()
    assert b"w_at" not in source.proto.SerializeToString()
    x = np.random.default_rng(1).standard_normal((2, 16)).astype(np.float32)
    feed = {"x": x, "if": np.array(True)} if "branch" in where else {"x": x}
    (found,) = run(dense, feed)
    np.testing.assert_allclose(found, np.maximum(x @ _pruned(), 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["int8", "int8+fp16", "fp16"])
@pytest.mark.parametrize("where", ["initializer", "constant", "function"])
def test_a_sparse_weight_is_quantized(where: str, precision: str, tmp_path: Path) -> None:
    path = _saved(tmp_path, WHERE[where], _sparse(_pruned()))
    result = optimize(path, tmp_path / "out.onnx", RandomSamples(4), precision=precision)
    assert result.accuracy is not None
    assert result.accuracy.worst.relative < 0.05
    assert [group.kind for group in inspect(path).groups] == ["LinearAct"]
    assert (result.placement is not None) == precision.startswith("int8")


def test_a_tensor_without_a_value(tmp_path: Path) -> None:
    zeros = np.zeros((16, 8), np.float32)
    path = _saved(tmp_path, _initializer, _sparse(zeros))
    (found,) = run(load_weights(read_source(path)), {"x": np.ones((2, 16), np.float32)})
    assert not found.any()


def _changed(**how: np.ndarray) -> onnx.SparseTensorProto:
    sparse = _sparse(_pruned())
    for name, array in how.items():
        getattr(sparse, name).CopyFrom(numpy_helper.from_array(array, getattr(sparse, name).name))
    return sparse


def _huge() -> onnx.SparseTensorProto:
    sparse = _sparse(_pruned())
    sparse.dims[:] = [1 << 20, 1 << 20]
    return sparse


def _elsewhere() -> onnx.SparseTensorProto:
    sparse = _sparse(_pruned())
    sparse.values.ClearField("raw_data")
    sparse.values.data_location = TensorProto.EXTERNAL
    sparse.values.external_data.add(key="location", value="w.bin")
    return sparse


BROKEN = {
    "outside": (_changed(indices=np.arange(1000, 1000 + np.count_nonzero(_pruned()))), "outside"),
    "too few": (_changed(indices=np.arange(3)), "has indices int64 [3]"),
    "int32": (_changed(indices=np.flatnonzero(_pruned()).astype(np.int32)), "has indices int32"),
    "2 TB": (_huge(), "takes more than 2 GB dense"),
    "in another file": (_elsewhere(), "store them in the model"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sparse_tensors_are_one_line(name: str, tmp_path: Path) -> None:
    sparse, message = BROKEN[name]
    path = _saved(tmp_path, _initializer, sparse)
    with pytest.raises(ModelError) as error:
        read_source(path)
    assert message in str(error.value) and "'w'" in str(error.value)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
