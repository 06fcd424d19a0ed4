"""Files that onnxruntime's own optimizer wrote before us: it takes the same names again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from building import Net

from fusewright import RandomSamples, optimize
from fusewright.errors import ModelError

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def _session(path: Path, level: str, written: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    if written is not None:
        options.optimized_model_filepath = str(written)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _rewritten(proto: onnx.ModelProto, folder: Path, level: str = "ORT_ENABLE_BASIC") -> Path:
    onnx.save(proto, folder / "exported.onnx")
    path = folder / "m.onnx"
    _session(folder / "exported.onnx", level, path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8+fp16", "int4"])
def test_its_shapes_of_a_gemm_are_in_nobodys_way(precision: str, tmp_path: Path) -> None:
    """MatMul + Add on tokens become Reshape, Gemm, Reshape, which we write as MatMul + Add."""
    net = Net()
    x = net.input("x", 2, 5, 8)
    # It fuses no Einsum; here that becomes MatMul + Add, which it fuses when it opens the result.
    y = net.op("Add", net.op("Einsum", x, net.draw(8, 6), equation="...i,io->...o"), net.draw(6))
    # QuickGelu there, whose shape no one infers: the Reshape behind it stays.
    y = net.op("Mul", y, net.op("Sigmoid", net.op("Mul", y, 1.702)))
    y = net.op("Add", net.op("MatMul", y, net.draw(6, 8)), net.draw(8))
    path = _rewritten(net.proto(y), tmp_path, "ORT_ENABLE_EXTENDED")
    stored = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert any(name.startswith("gemm_input_shape") for name in stored)
    out = tmp_path / "o.onnx"
    optimize(path, out, RandomSamples(2), precision=precision, strict=True)
    feed = {"x": np.ones((2, 5, 8), np.float32)}
    found = [_session(out, level).run(None, feed)[0] for level in LEVELS]
    assert all(np.allclose(one, found[0], rtol=0.05, atol=0.05) for one in found)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_its_shape_of_a_reshape_is_in_nobodys_way(
    dtype: type, precision: str, tmp_path: Path
) -> None:
    """Behind the second Linear, which only our MatMul + Add lets it fuse, it takes the name again.

    An FP16 file with a body is not cleaned by onnxruntime.
    """
    net = Net()
    x = net.input("x", 2, 5, 8, dtype=dtype)
    for spelt, heads in ((("MatMul",), 2), (("Einsum", "...i,io->...o"), 4)):
        more = {"equation": spelt[1]} if len(spelt) > 1 else {}
        y = net.op(spelt[0], x, net.draw(8, 8, dtype=dtype), **more)
        y = net.op("Add", y, net.draw(8, dtype=dtype))
        y = net.op("Transpose", net.op("Reshape", y, [2, 5, heads, 8 // heads]), perm=[0, 2, 1, 3])
        x = net.op("Reshape", net.op("Softmax", y), [2, 5, 8])
    proto = net.proto(x)
    if dtype is np.float16:
        _add_a_body(proto)
    path = _rewritten(proto, tmp_path)
    stored = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert any(name.endswith("_new_shape") for name in stored)
    out = tmp_path / "o.onnx"
    optimize(path, out, RandomSamples(2), precision=precision, strict=True)
    for level in LEVELS:
        _session(out, level)


def _add_a_body(proto: onnx.ModelProto) -> None:
    """Puts an If behind the output, in place; both of its branches give what they read."""
    made = proto.graph.output[0].name
    condition = onnx.helper.make_tensor("condition", onnx.TensorProto.BOOL, [], [True])
    proto.graph.initializer.append(condition)
    branches = {}
    for branch in ("then_branch", "else_branch"):
        value = onnx.helper.make_tensor_value_info(branch, onnx.TensorProto.FLOAT16, None)
        node = onnx.helper.make_node("Abs", [made], [branch])
        branches[branch] = onnx.helper.make_graph([node], branch, [], [value])
    proto.graph.node.append(onnx.helper.make_node("If", ["condition"], ["chosen"], **branches))
    proto.graph.output[0].name = "chosen"


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8+fp16"])
def test_its_casts_around_float16_kernels_are_the_files_own(precision: str, tmp_path: Path) -> None:
    net = Net()
    half = np.float16
    x = net.input("x", 2, 4, 8, 8, dtype=half)
    y = net.op("Relu", net.conv(x, 8, 4, dtype=half))
    path = _rewritten(net.proto(net.conv(y, 4, 8, dtype=half)), tmp_path)
    names = [name for node in onnx.load(path).graph.node for name in node.output]
    assert any(name.startswith("InsertedPrecisionFreeCast_") for name in names)
    result = optimize(path, None, RandomSamples(2), precision=precision, strict=True)
    assert [g.kind for g in result.plan.groups] == ["ConvBNAct", "ConvBN"]


def test_what_it_fused_in_a_body_is_noted(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", 1, 4, 8, 8)
    inside = onnx.helper.make_node("Gelu", [x], ["inside"], domain="com.microsoft")
    other = onnx.helper.make_node("Identity", [x], ["other"])
    bodies = {
        key: onnx.helper.make_graph([node], key, [], [onnx.ValueInfoProto(name=node.output[0])])
        for key, node in (("then_branch", inside), ("else_branch", other))
    }
    positive = net.op("Cast", net.op("ReduceMean", x, keepdims=0), to=onnx.TensorProto.BOOL)
    model = net.proto(net.conv(net.op("If", positive, **bodies), 4, 4))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "net.onnx")
    notes = optimize(tmp_path / "net.onnx", None, RandomSamples(2)).notes
    assert any("left alone: Gelu of 'com.microsoft'" in note for note in notes)


def test_what_it_fused_for_other_devices_is_named(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Transpose", net.input("x", 1, 4, 8, 8), perm=[0, 2, 3, 1])
    model = net.proto(net.op("NhwcConv", x, net.draw(4, 4, 3, 3), domain="com.microsoft"))
    onnx.save(model, tmp_path / "net.onnx")
    said = r"net\.onnx: node 'NhwcConv_\d+' \(NhwcConv\) is one that onnxruntime's optimizer writes"
    with pytest.raises(ModelError, match=said):
        optimize(tmp_path / "net.onnx", None, RandomSamples(2))
