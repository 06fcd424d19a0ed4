"""Opset conversion and shape inference, both without touching the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import pytest
from building import Net, assert_equal
from onnx import TensorProto, helper

from fusewright import RandomSamples, optimize
from fusewright.errors import ModelError
from fusewright.graph.light import byte_size, is_heavy, with_weights, without_weights
from fusewright.graph.opset import convert_opset
from fusewright.graph.shapes import infer_shapes


def _net(opset: int) -> onnx.ModelProto:
    """Operators whose form changed between opset 7 and 13."""
    net = Net(opset)
    x = net.op("Relu", net.batchnorm(net.conv(net.input("x", 1, 4, 8, 8), 16, 4, 3), 16))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Clip", x, min=0.0, max=6.0) if opset < 11 else net.op("Clip", x, 0.0, 6.0)
    x = net.op("Squeeze", net.op("GlobalAveragePool", x), axes=[2, 3])
    x = net.op("Gemm", x, net.draw(16, 10), net.draw(10))
    return net.proto(net.op("Softmax", x, axis=1))


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_conversion_to_13_is_proven(opset: int, tmp_path: Path) -> None:
    proto = _net(opset)
    before = proto.SerializeToString()
    converted = convert_opset(proto, 13)
    assert proto.SerializeToString() == before
    assert converted.opset_import[0].version == 13
    assert_equal(proto, converted)
    onnx.save(proto, tmp_path / "net.onnx")
    result = optimize(tmp_path / "net.onnx", None, RandomSamples(4), precision="int8")
    assert result.model.opset_import[0].version == 13
    assert result.proofs["clean opset"].is_within(1e-5)
    assert not result.trace.undone()
    assert result.plan.counts() == {"ConvBNActMaxPool": 1, "Linear": 1, "AdaptiveAvgPool": 1}
    (event,) = [e for e in result.trace if e.name == "opset conversion"]
    assert event.detail == f"{opset} → 13"


@pytest.mark.parametrize("opset", [7, 9, 10])
@pytest.mark.parametrize("mode", ["reflect", "edge", "nearest", "linear"])
def test_pad_and_upsample_keep_their_mode(opset: int, mode: str, tmp_path: Path) -> None:
    """Style transfer and segmentation networks of the model zoo's first years."""
    net = Net(opset)
    x = net.conv(net.input("x", 1, 4, 8, 8), 4, 4)
    if mode in ("reflect", "edge"):
        x = net.op("Pad", x, mode=mode, pads=[0, 0, 1, 2, 0, 0, 2, 1])
    elif opset < 9:
        x = net.op("Upsample", x, mode=mode, scales=[1.0, 1.0, 1.25, 1.25])
    else:
        op = "Upsample" if opset == 9 else "Resize"
        x = net.op(op, x, [1.0, 1.0, 1.25, 1.25], mode=mode)
    path = tmp_path / "net.onnx"
    onnx.save(net.proto(net.conv(x, 4, 4)), path)
    result = optimize(path, None, RandomSamples(2))
    assert result.proofs["clean opset"].is_within(1e-5)
    assert not result.trace.undone()


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_newer_opset_stays(opset: int) -> None:
    net = Net(opset)
    proto = net.proto(net.op("Relu", net.input("x", 1, 4)))
    assert convert_opset(proto, 13) is proto


@pytest.mark.parametrize(
    "error",
    [onnx.version_converter.ConvertError("no adapter\nat x.h:7"), RuntimeError("unsupported")],
)
def test_what_the_converter_refuses_is_one_clear_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        raise error

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    with pytest.raises(ModelError) as found:
        convert_opset(_net(9), 13)
    assert str(found.value).startswith("opset 9 cannot be converted to 13: ")
    assert "\n" not in str(found.value)


def test_weights_are_left_out_and_put_back() -> None:
    proto = _net(12)
    small = [t for t in proto.graph.initializer if not is_heavy(t)]
    light = without_weights(proto)
    assert 0 < len(light.graph.initializer) == len(small) < len(proto.graph.initializer)
    assert light.ByteSize() < proto.ByteSize() - 2000  # the convolution's 16x4x3x3 floats
    again = with_weights(light, proto)
    assert_equal(proto, again)
    key = lambda t: t.name  # noqa: E731
    assert sorted(again.graph.initializer, key=key) == sorted(proto.graph.initializer, key=key)


def test_shapes_are_inferred_without_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = _net(12)
    seen: list[int] = []
    infer = onnx.shape_inference.infer_shapes

    def watched(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
        seen.extend(t.ByteSize() for t in model.graph.initializer)
        return infer(model, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", watched)
    stored = [t.SerializeToString() for t in proto.graph.initializer]
    infer_shapes(proto)
    assert max(seen) <= 1024
    assert [t.SerializeToString() for t in proto.graph.initializer] == stored
    kinds = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.value_info
    }
    pooled = next(n.output[0] for n in proto.graph.node if n.op_type == "MaxPool")
    assert kinds[pooled] == [1, 16, 4, 4]


def test_shapes_through_small_stored_shapes() -> None:
    net = Net()
    shape = net.store([1, 4, 16], "shape", np.int64)
    y = net.op("Relu", net.op("Reshape", net.input("x", 4, 16), shape))
    proto = net.proto(y)
    infer_shapes(proto)
    found = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.value_info
    }
    assert [1, 4, 16] in found.values()


def test_external_weights_are_never_read() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere.bin")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "net",
        [value("x", TensorProto.FLOAT, [5, 2])],
        [value("y", TensorProto.FLOAT, None)],
        [tensor],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert is_heavy(tensor)
    infer_shapes(proto)
    (hidden,) = [v for v in proto.graph.value_info if v.name == "h"]
    assert [d.dim_value for d in hidden.type.tensor_type.shape.dim] == [5, 3]


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("FLOAT", 60),
        ("BFLOAT16", 30),
        ("INT8", 15),
        ("FLOAT8E4M3FN", 15),
        ("INT4", 8),
        ("UINT4", 8),
        ("FLOAT4E2M1", 8),
        ("STRING", 0),
    ],
)
def test_bytes_by_type(kind: str, size: int) -> None:
    """Two values of four bits lie in one byte."""
    tensor = onnx.TensorProto(dims=(3, 5), data_type=onnx.TensorProto.DataType.Value(kind))
    assert byte_size(tensor) == size
