"""Attributes that graphsurgeon would lose or refuse to write: they come out as they went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net
from onnx import AttributeProto, helper, numpy_helper

from fusewright import RandomSamples, optimize, strip_qdq
from fusewright.graph.attributes import import_graph
from fusewright.pipeline import inspect

TENSOR = numpy_helper.from_array(np.arange(3), "t")
KINDS: dict[str, AttributeProto] = {
    "ints": AttributeProto(name="held", type=AttributeProto.INTS),
    "floats": AttributeProto(name="held", type=AttributeProto.FLOATS),
    "strings": AttributeProto(name="held", type=AttributeProto.STRINGS),
    "no tensors": AttributeProto(name="held", type=AttributeProto.TENSORS),
    "no types": AttributeProto(name="held", type=AttributeProto.TYPE_PROTOS),
    "a type": AttributeProto(
        name="held", type=AttributeProto.TYPE_PROTO, tp=helper.make_tensor_type_proto(1, [2])
    ),
    "tensors": AttributeProto(name="held", type=AttributeProto.TENSORS, tensors=[TENSOR, TENSOR]),
    "no empty list": AttributeProto(name="held", type=AttributeProto.INTS, ints=[3, 4]),
}


def _with_custom(held: AttributeProto, folder: Path) -> Path:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 4, 4))
    model = net.proto(net.op("Relu", x), net.op("Zap", x, domain="zip"))
    next(n for n in model.graph.node if n.op_type == "Zap").attribute.append(held)
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_custom_operator(kind: str, tmp_path: Path) -> None:
    path = _with_custom(KINDS[kind], tmp_path)
    for model in (optimize(path, None, RandomSamples(2)).model, strip_qdq(path)):
        (custom,) = (node for node in model.graph.node if node.op_type == "Zap")
        assert list(custom.attribute) == [KINDS[kind]]


@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
def test_of_a_transpose_of_a_scalar(precision: str, tmp_path: Path) -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 4, 8, 8), 4, 4)
    mean = net.op("Transpose", net.op("ReduceMean", x, keepdims=0), name="moved")
    model = net.proto(net.op("Add", x, mean))
    (moved,) = (node for node in model.graph.node if node.name == "moved")
    moved.attribute.add(name="perm", type=AttributeProto.INTS)
    onnx.save(model, tmp_path / "net.onnx")
    assert inspect(tmp_path / "net.onnx").groups
    result = optimize(tmp_path / "net.onnx", None, RandomSamples(2), precision=precision)
    assert result.accuracy is not None and (result.accuracy.worst.sqnr_db or 0) > 30


def test_in_a_body(tmp_path: Path) -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 4, 8, 8), 4, 4)
    bodies = {}
    for key in ("then_branch", "else_branch"):
        mean = helper.make_node("ReduceMean", [x], [f"{key}_m"], keepdims=0)
        moved = helper.make_node("Transpose", [f"{key}_m"], [f"{key}_y"], name=key)
        moved.attribute.add(name="perm", type=AttributeProto.INTS)
        out = [helper.make_tensor_value_info(f"{key}_y", 1, [])]
        bodies[key] = helper.make_graph([mean, moved], key, [], out)
    positive = net.op("Cast", net.op("ReduceMax", x, keepdims=0), to=onnx.TensorProto.BOOL)
    onnx.save(net.proto(net.op("If", positive, **bodies)), tmp_path / "net.onnx")
    model = optimize(tmp_path / "net.onnx", None, RandomSamples(2)).model
    (branch,) = (node for node in model.graph.node if node.op_type == "If")
    inside = [node for a in branch.attribute for node in a.g.node if node.op_type == "Transpose"]
    assert [a.type for node in inside for a in node.attribute] == [AttributeProto.INTS] * 2


@pytest.mark.parametrize("kind", ["ints", "a type"])
def test_a_model_is_let_go_of(kind: str) -> None:
    net = Net()
    model = net.proto(net.op("Zap", net.input("x", 1), domain="zip"))
    model.graph.node[0].attribute.append(KINDS[kind])
    (own,) = model.graph.node[0].attribute
    kept = import_graph(model).nodes[0].attrs["held"]
    # protobuf keeps a whole model in memory while any part of it is referred to.
    assert own is not getattr(kept, "attribute", None)
    assert own.tp is not kept
