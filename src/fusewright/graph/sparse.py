"""Sparse stored tensors made dense: no engine multiplies by them, and few tools read them.

onnxruntime runs them, and writes them itself where a weight was pruned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from fusewright.errors import ModelError
from fusewright.graph.external import is_external
from fusewright.graph.intact import check_tensors

# protobuf's own limit of a file, which a dense tensor of some bytes on disk can exceed.
_MOST_BYTES = 1 << 31


def make_dense(proto: onnx.ModelProto, path: Path) -> bool:
    """Makes sparse initializers and Constants dense, in place; says whether there was any.

    Those of the graph, of subgraphs (If, Loop, Scan) and of local functions.

    Raises:
        ModelError: indices that do not fit shape and values, values in another file, or a shape
            that would take more than 2 GB.
    """
    found = _in_graph(proto.graph, path)
    for function in proto.functions:
        found |= _in_nodes(function.node, path)
    return found


def _in_graph(graph: onnx.GraphProto, path: Path) -> bool:
    found = bool(graph.sparse_initializer)
    graph.initializer.extend(_dense(t, t.values.name, path) for t in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    return _in_nodes(graph.node, path) or found


def _in_nodes(nodes: Iterable[onnx.NodeProto], path: Path) -> bool:
    found = False
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") and node.op_type == "Constant":
                dense = _dense(attribute.sparse_tensor, node.output[0], path)
                attribute.ClearField("sparse_tensor")
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.t.CopyFrom(dense)
                found = True
            for graph in _bodies(attribute):
                found |= _in_graph(graph, path)
    return found


def _bodies(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _dense(sparse: onnx.SparseTensorProto, name: str, path: Path) -> onnx.TensorProto:
    where = f"{path}: sparse tensor '{name}'"
    check_tensors((sparse.values, sparse.indices), path)
    if is_external(sparse.values) or is_external(sparse.indices):
        raise ModelError(f"{where} has its values in another file: store them in the model")
    shape = tuple(sparse.dims)
    if sparse.values.data_type == onnx.TensorProto.STRING:
        raise ModelError(f"{where} holds texts")
    values = numpy_helper.to_array(sparse.values).reshape(-1)
    if min(shape, default=0) < 0 or math.prod(shape) * values.itemsize > _MOST_BYTES:
        raise ModelError(f"{where} has shape {list(shape)}, which takes more than 2 GB dense")
    array = np.zeros(math.prod(shape), values.dtype)
    array[_positions(sparse.indices, shape, values.size, where)] = values
    return numpy_helper.from_array(array.reshape(shape), name)


def _positions(
    indices: onnx.TensorProto, shape: tuple[int, ...], count: int, where: str
) -> np.ndarray:
    """Row-major positions; stored as such, [count], or as coordinates, [count, rank]."""
    found = numpy_helper.to_array(indices)
    if found.dtype != np.int64 or found.shape not in ((count,), (count, len(shape))):
        raise ModelError(
            f"{where} has indices {found.dtype} {list(found.shape)} for {count} values; they are"
            f" int64, [{count}] or [{count}, {len(shape)}]"
        )
    ends = np.array(shape if found.ndim == 2 else [math.prod(shape)], np.int64)
    if ((found < 0) | (found >= ends)).any():
        raise ModelError(f"{where} has indices outside its shape {list(shape)}")
    if found.ndim == 1:
        return found
    strides = np.array([math.prod(shape[i + 1 :]) for i in range(len(shape))], np.int64)
    positions: np.ndarray = found @ strides
    return positions
