"""INT4 files taken back to float: what is stored in four bits is read without being unpacked."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net, assert_equal
from onnx import TensorProto

from fusewright import RandomSamples, optimize, strip_qdq
from fusewright.quantize.existing import count_qdq
from fusewright.quantize.int4.storing import int4_tensor
from fusewright.quantize.strip import strip_qdq as strip_graph


@pytest.mark.parametrize("settings", [{}, {"flat": True}], ids=["collapsed", "flat"])
@pytest.mark.parametrize("precision", ["int4", "int4+fp16"])
def test_a_float_file_that_runs(precision: str, settings: dict[str, bool], tmp_path: Path) -> None:
    net = Net()
    y = net.op("Add", net.op("MatMul", net.input("x", 2, 8, 64), net.draw(64, 96)), net.draw(96))
    source, out = tmp_path / "net.onnx", tmp_path / "int4.onnx"
    onnx.save(net.proto(net.op("MatMul", net.op("Relu", y), net.draw(96, 32))), source)
    result = optimize(source, out, RandomSamples(4), precision=precision, **settings)
    stored = {t.data_type for t in result.model.graph.initializer}
    assert TensorProto.INT4 in stored
    for stripped in (strip_qdq(out), strip_qdq(result.model)):
        assert count_qdq(stripped) == 0
        left = {t.data_type for t in stripped.graph.initializer}
        assert left == stored - {TensorProto.INT4}
        # The values that the weights were rounded to, in each block.
        assert_equal(onnx.load(out), stripped, None, 1e-5 if precision == "int4" else 1e-2)


def test_the_graph_is_written_again_with_the_weights_that_another_reads() -> None:
    """A last block of 2 rows; the codes are an output too, so that they stay in the file."""
    codes = np.arange(-6, 6, dtype=np.int8).reshape(6, 2) // 2
    scales = np.array([[0.5, 2.0], [4.0, 0.25]], np.float32)
    weight = onnx.TensorProto.FromString(int4_tensor("w", codes).SerializeToString())
    nodes = [
        onnx.helper.make_node(
            "DequantizeLinear", ["w", "s"], ["f"], name="restore", axis=0, block_size=4
        ),
        onnx.helper.make_node("MatMul", ["x", "f"], ["y"]),
        onnx.helper.make_node("Identity", ["w"], ["z"]),
    ]
    made = onnx.helper.make_graph(
        nodes,
        "net",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 6))],
        [
            onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, (3, 2)),
            onnx.helper.make_tensor_value_info("z", TensorProto.INT4, (6, 2)),
        ],
        [weight, onnx.numpy_helper.from_array(scales, "s")],
    )
    proto = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 21)])
    stripped = strip_qdq(proto)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in stripped.graph.initializer}
    assert tensors["w"].dtype == ml_dtypes.int4
    assert np.array_equal(tensors["w"].astype(np.int8), codes)
    assert np.array_equal(tensors["w_float"], codes * scales[[0, 0, 0, 0, 1, 1]])
    graph = gs.import_onnx(proto)
    assert strip_graph(graph) == ["w_float"]
