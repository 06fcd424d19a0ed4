"""Model-local functions: inlined, with every node traced back to the call it came from."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from building import Net, assert_equal
from onnx import helper

from fusewright import RandomSamples, inspect, optimize
from fusewright.errors import ModelError
from fusewright.graph.load import inline_functions, read_source
from fusewright.graph.model import trace_origins
from fusewright.pipeline.prepare import Preparation
from fusewright.pipeline.trace import Trace


def _residual(tmp_path: Path) -> Path:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 8, 8, 8), 8, 8), name="stem/act")
    y = net.op("Relu", net.op("Add", net.conv(x, 8, 8), x), name="tail/act")
    path = tmp_path / "net.onnx"
    onnx.save(net.proto(y), path)
    return path


def test_collapsed_file_shows_the_calls_as_nodes(tmp_path: Path) -> None:
    path, out = _residual(tmp_path), tmp_path / "collapsed.onnx"
    made = optimize(path, out, RandomSamples(4), precision="fp32")
    calls = [n.name for n in made.model.graph.node if n.domain == "fusewright"]
    found = inspect(out)
    assert found.counts() == made.plan.counts() == {"ConvBNAddAct": 1, "ConvBNAct": 1}
    assert sorted(n for g in found.groups for n in g.nodes) == sorted(calls)
    assert [g.nodes for g in found.groups] == [(g.name,) for g in made.plan.groups]


def test_quantized_file_shows_the_calls_and_what_is_in_it(tmp_path: Path) -> None:
    path, out = _residual(tmp_path), tmp_path / "int8.onnx"
    made = optimize(path, out, RandomSamples(4))
    found = inspect(out)
    assert [g.name for g in found.groups] == [g.name for g in made.plan.groups]
    assert [g.decision for g in found.groups] == ["int8", "int8"]
    assert all("pairs in the file" in g.reason for g in found.groups)


def test_nested_functions_are_inlined(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lib", 1)]
    inner = helper.make_function(
        "lib", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opsets
    )
    outer = helper.make_function(
        "lib",
        "Fourfold",
        ["a"],
        ["c"],
        [
            helper.make_node("Twice", ["a"], ["b"], domain="lib"),
            helper.make_node("Twice", ["b"], ["c"], domain="lib"),
        ],
        opsets,
    )
    graph = helper.make_graph(
        [
            helper.make_node("Fourfold", ["x"], ["h"], "call", domain="lib"),
            helper.make_node("Relu", ["h"], ["y"], "act"),
        ],
        "net",
        [value("x", 1, [1, 4])],
        [value("y", 1, [1, 4])],
    )
    proto = helper.make_model(graph, opset_imports=opsets, functions=[inner, outer], ir_version=8)
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    assert read_source(path).custom == ()
    model = Preparation(read_source(path), Trace()).run()
    assert [n.op for n in model.graph.nodes] == ["Add", "Add", "Relu"]
    assert [model.origin(n) for n in model.graph.nodes] == [("call",), ("call",), ("act",)]
    assert_equal(proto, model)


def test_a_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lib", 1)]
    body = [helper.make_node("Endless", ["a"], ["b"], domain="lib")]
    endless = helper.make_function("lib", "Endless", ["a"], ["b"], body, opsets)
    value = onnx.helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Endless", ["x"], ["y"], "call", domain="lib")],
        "net",
        [value("x", 1, [1])],
        [value("y", 1, [1])],
    )
    proto = helper.make_model(graph, opset_imports=opsets, functions=[endless], ir_version=8)
    with pytest.raises(ModelError, match="cannot be inlined"):
        inline_functions(proto, tmp_path / "net.onnx")


def test_new_nodes_stand_for_what_reads_them() -> None:
    net = Net()
    x = net.input("x", 1, 4)
    y = net.op(
        "Relu", net.op("Add", net.op("Mul", x, x, name="new"), x, name="also new"), name="old"
    )
    model = net.model(y)
    origins = trace_origins(model.graph.nodes, {"old"}, {y: "old"})
    assert origins == {"old": ("old",), "also new": ("old",), "new": ("old",)}
    by_tensor = trace_origins(model.graph.nodes, {"old"}, {y: "old", "new_y": "gone"})
    assert by_tensor["new"] == ("gone",)
    assert by_tensor["also new"] == ("old",)
