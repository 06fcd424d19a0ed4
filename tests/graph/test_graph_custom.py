"""Operators that onnxruntime does not have: left alone and listed, all in front optimized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net, run
from onnx import TensorProto, helper

from fusewright import RandomSamples, Result, optimize, strip_qdq
from fusewright.errors import ModelError
from fusewright.graph.convert import to_model, to_proto
from fusewright.graph.load import read_source
from fusewright.graph.runnable import is_custom, out_of_reach, runnable_part

_NMS = "EfficientNMS_TRT"


def _head(domain: str) -> onnx.ModelProto:
    """Two convolutions, boxes and scores, and TensorRT's NMS plugin behind them."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4), name="stem/act")
    boxes = net.op("Reshape", net.conv(x, 4, 8, 1), [1, -1, 4])
    scores = net.op("Sigmoid", net.op("Reshape", net.conv(x, 4, 8, 1), [1, -1, 4]))
    names = ["num_dets", "det_boxes", "det_scores", "det_classes"]
    attrs = {"score_threshold": 0.25, "iou_threshold": 0.5, "max_output_boxes": 10}
    proto = net.proto(x)
    nms = helper.make_node(_NMS, [boxes, scores], names, "nms", domain=domain, **attrs)
    proto.graph.node.append(nms)
    del proto.graph.output[:]
    shapes = [[1, 1], [1, 10, 4], [1, 10], [1, 10]]
    kinds = [TensorProto.INT32, TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32]
    for name, kind, shape in zip(names, kinds, shapes, strict=True):
        proto.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto


def _middle() -> onnx.ModelProto:
    """A plugin between two convolutions, and a branch that does not depend on it."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4), name="front")
    aside = net.op("Relu", net.conv(x, 8, 8), name="aside")
    x = net.op("DeformAttn", x, domain="acme", name="plugin")
    weight = net.draw(8, 8, 3, 3)
    y = net.op("Relu", net.op("Conv", x, weight, pads=[1] * 4, name="behind/conv"), name="behind")
    proto = net.proto(aside)
    proto.graph.output.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 8, 8, 8]))
    return proto


def _optimized(proto: onnx.ModelProto, tmp_path: Path, **settings: object) -> Result:
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    return optimize(path, tmp_path / "out.onnx", RandomSamples(4), **settings)


@pytest.mark.parametrize("domain", ["", "TRT"])
@pytest.mark.parametrize("flat", [False, True], ids=["collapsed", "flat"])
def test_plugin_at_the_end(domain: str, flat: bool, tmp_path: Path) -> None:
    proto = _head(domain)
    result = _optimized(proto, tmp_path, flat=flat)
    assert result.plan.counts() == {"ConvBNAct": 1, "ConvBN": 2}
    assert all(g.decision == "int8" for g in result.plan.groups)
    (before,) = [n for n in proto.graph.node if n.op_type == _NMS]
    (after,) = [n for n in result.model.graph.node if n.op_type == _NMS]
    assert (list(after.input), list(after.output)) == (list(before.input), list(before.output))
    assert sorted(after.attribute, key=lambda a: a.name) == sorted(
        before.attribute, key=lambda a: a.name
    )
    assert after.domain == domain
    assert result.model.graph.output == proto.graph.output
    assert result.accuracy is not None
    assert {o.name for o in result.accuracy.outputs} == set(before.input)
    assert not result.trace.undone()
    load = next(e for e in result.trace if e.stage == "load" and e.what == "pass")
    assert f"{domain or 'ai.onnx'}::{_NMS}" in load.detail


def test_plugin_in_the_middle(tmp_path: Path) -> None:
    proto = _middle()
    result = _optimized(proto, tmp_path)
    assert result.plan.counts() == {"ConvBNAct": 2}
    assert [g.nodes[-1] for g in result.plan.groups] == ["front", "aside"]
    (entry,) = result.plan.unclaimed
    assert (entry.op, entry.name) == ("Conv", "behind/conv")
    assert "custom operator" in entry.reason
    nodes = {n.name: n for n in result.model.graph.node}
    for name in ("plugin", "behind/conv", "behind"):
        (before,) = [n for n in proto.graph.node if n.name == name]
        assert list(nodes[name].input) == list(before.input)
        assert list(nodes[name].output) == list(before.output)


def _branch(op: str, domain: str, source: str) -> onnx.GraphProto:
    node = helper.make_node(op, [source], [f"{op}_y"], f"inner_{op}", domain=domain)
    value = helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, [1, 8, 8, 8])
    return helper.make_graph([node], op, [], [value])


def _if(domain: str, op: str) -> onnx.ModelProto:
    """A convolution, an If with one odd operator in a branch, and a convolution behind it."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4), name="front")
    then, other = _branch(op, domain, x), _branch("Abs", "", x)
    yes = net.input("yes", dtype=np.bool_)
    y = net.op("If", yes, then_branch=then, else_branch=other, name="if")
    proto = net.proto(net.conv(y, 8, 8, name="behind"))
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    shape = [1, 8, 8, 8]
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, shape)
    proto.graph.output[0].type.CopyFrom(kind)
    return proto


def test_plugin_in_a_branch(tmp_path: Path) -> None:
    proto = _if("acme", "Plugin")
    result = _optimized(proto, tmp_path)
    assert [g.nodes[-1] for g in result.plan.groups] == ["front"]
    (entry,) = result.plan.unclaimed
    assert entry.name == "behind"
    assert "custom operator" in entry.reason
    before, after = (
        next(n for n in one.graph.node if n.op_type == "If") for one in (proto, result.model)
    )
    assert list(after.output) == list(before.output)
    inner = [n.op_type for a in after.attribute for n in a.g.node]
    assert sorted(inner) == ["Abs", "Plugin"]


def test_plugin_in_a_local_function(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4), name="front")
    proto = net.proto(net.op("Block", x, domain="local", name="block"))
    body = [helper.make_node("Plugin", ["a"], ["b"], "plugin", domain="acme")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    proto.functions.append(helper.make_function("local", "Block", ["a"], ["b"], body, imports))
    proto.opset_import.append(helper.make_opsetid("acme", 1))
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [1, 8, 8, 8])
    proto.graph.output[0].type.CopyFrom(kind)
    result = _optimized(proto, tmp_path)
    assert [g.nodes[-1] for g in result.plan.groups] == ["front"]
    assert "Plugin" in {n.op_type for n in result.model.graph.node}


def test_quantized_branch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"quantized already \(DynamicQ"):
        _optimized(_if("", "DynamicQuantizeLinear"), tmp_path)


def test_what_is_behind_a_plugin_is_not_rewritten(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Plugin", net.input("x", 1, 4, 8, 8), domain="acme", name="plugin")
    y = net.op("Identity", net.op("Relu", net.op("Conv", x, net.draw(8, 4, 1, 1))), name="last")
    proto = net.proto(y)
    path = tmp_path / "net.onnx"
    proto.graph.output[0].CopyFrom(
        helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 8, 8, 8])
    )
    onnx.save(proto, path)
    source = read_source(path)
    assert source.custom == ("acme::Plugin",)
    model = to_model(source.proto, source)
    lost = out_of_reach(model.graph, frozenset(source.custom))
    assert [n.op for n in lost] == ["Plugin", "Conv", "Relu", "Identity"]


def test_the_runnable_part_ends_where_the_rest_begins(tmp_path: Path) -> None:
    proto = _middle()
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    source = read_source(path)
    graph = to_model(source.proto, source).graph
    custom = frozenset(source.custom)
    assert [n.name for n in graph.nodes if is_custom(n, custom)] == ["plugin"]
    part = runnable_part(graph, custom)
    assert [t.name for t in part.outputs] == ["aside_y", "front_y"]
    assert {n.name for n in graph.nodes} > {n.name for n in part.nodes}
    assert runnable_part(graph, frozenset()) is graph


@pytest.mark.parametrize("make", [_head, _middle], ids=["head", "middle"])
def test_what_is_in_front_computes_what_it_did(make, tmp_path: Path) -> None:
    proto = make("TRT") if make is _head else make()
    result = _optimized(proto, tmp_path, precision="int8")
    float_file = strip_qdq(result.model)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)}
    custom = frozenset(read_source(tmp_path / "net.onnx").custom)
    expected, actual = (_run_in_front(p, custom, feed) for p in (proto, float_file))
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        error = np.linalg.norm(value - actual[name]) / np.linalg.norm(value)
        assert error <= 1e-5


def _run_in_front(proto: onnx.ModelProto, custom: frozenset[str], feed) -> dict[str, np.ndarray]:
    part = to_proto(runnable_part(gs.import_onnx(proto), custom))
    return dict(zip([v.name for v in part.graph.output], run(part, feed), strict=True))


@pytest.mark.parametrize("precision", ["int8+fp16", "int8+bf16", "fp8+fp16", "fp16", "bf16"])
@pytest.mark.parametrize(("op", "opset"), [("Gelu", 13), ("Gelu", 19), ("Frobnicate", 19)])
def test_a_standard_operator_that_the_opset_lacks_stays_float_in_a_half_file(
    op: str, opset: int, precision: str, tmp_path: Path
) -> None:
    net = Net(opset)
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 8, 4))
    y = net.conv(net.op(op, x), 8, 8)
    onnx.save(net.proto(y), tmp_path / "net.onnx")
    result = optimize(
        tmp_path / "net.onnx", tmp_path / "out.onnx", RandomSamples(2), precision=precision
    )
    assert op in [node.op_type for node in result.model.graph.node]
    assert any(op in note for note in result.notes)
