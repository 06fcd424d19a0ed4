"""If, Loop and Scan that capture outer tensors: carried through every stage as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net, assert_equal, feeds, run
from onnx import TensorProto, helper

from fusewright import Result, optimize, strip_qdq

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
_value = helper.make_tensor_value_info


def _conv_relu(net: Net, x: str) -> str:
    return net.op("Relu", net.conv(x, 8, 8))


def _if(net: Net, x: str) -> str:
    """Both branches read the map outside; one holds a heavy op of its own."""
    positive = net.op("Greater", net.op("ReduceMax", x, keepdims=0), 0.5)
    weight = net.draw(8, 8, 3, 3, name="branch_weight")
    conv = helper.make_node("Conv", [x, weight], ["then_y"], "inner_conv", pads=[1] * 4)
    then = helper.make_graph([conv], "then", [], [_value("then_y", FLOAT, None)])
    tanh = helper.make_node("Tanh", [x], ["else_y"], "inner_tanh")
    other = helper.make_graph([tanh], "else", [], [_value("else_y", FLOAT, None)])
    return net.op("If", positive, then_branch=then, else_branch=other)


def _loop(net: Net, x: str) -> str:
    """Adds the map outside to the carried one, three times."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["still"], "inner_go"),
            helper.make_node("Add", ["carried", x], ["grown"], "inner_add"),
        ],
        "body",
        [_value("i", INT64, []), _value("go", BOOL, []), _value("carried", FLOAT, None)],
        [_value("still", BOOL, []), _value("grown", FLOAT, None)],
    )
    three = net.store(3, "three", np.int64)
    return net.op("Loop", three, net.store(True, "go", np.bool_), x, body=body)


def _scan(net: Net, x: str) -> str:
    """Runs over the batch and adds a mean of the map outside."""
    outer = net.op("ReduceMean", x, keepdims=0)
    body = helper.make_graph(
        [helper.make_node("Add", ["slice", outer], ["shifted"], "inner_add")],
        "body",
        [_value("slice", FLOAT, [8, 8, 8])],
        [_value("shifted", FLOAT, [8, 8, 8])],
    )
    return net.op("Scan", x, num_scan_inputs=1, body=body)


KINDS = {"If": _if, "Loop": _loop, "Scan": _scan}


def _proto(kind: str) -> onnx.ModelProto:
    net = Net()
    x = _conv_relu(net, net.input("x", 2, 8, 8, 8))
    return net.proto(_conv_relu(net, KINDS[kind](net, x)))


def _optimized(proto: onnx.ModelProto, tmp_path: Path, **settings: object) -> Result:
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    # Two signs of data, so that both branches of the If are met.
    low, high = feeds(proto), {"x": np.full((2, 8, 8, 8), -9, np.float32)}
    return optimize(path, tmp_path / "out.onnx", [low, high], **settings)


def _bodies(proto: onnx.ModelProto, kind: str) -> list[list[tuple[str, list[str]]]]:
    (node,) = [n for n in proto.graph.node if n.op_type == kind]
    return [
        [(n.op_type, list(n.input)) for n in a.g.node] for a in node.attribute if a.HasField("g")
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flat", [False, True], ids=["collapsed", "flat"])
@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
def test_subgraph_survives(kind: str, flat: bool, precision: str, tmp_path: Path) -> None:
    proto = _proto(kind)
    result = _optimized(proto, tmp_path, flat=flat, precision=precision)
    assert result.plan.counts() == {"ConvBNAct": 2}
    assert not result.trace.undone()
    assert all(g.decision == "int8" for g in result.plan.groups)
    assert sorted(_bodies(result.model, kind)) == sorted(_bodies(proto, kind))
    # Half weights are rounded.
    assert_equal(proto, strip_qdq(result.model), None, 1e-5 if precision == "int8" else 1e-3)
    low, high = (run(result.model, f) for f in (feeds(proto), {"x": -feeds(proto)["x"]}))
    assert all(np.isfinite(y).all() for y in (*low, *high))


@pytest.mark.parametrize("kind", KINDS)
def test_collapsed_float_file_equals_the_original(kind: str, tmp_path: Path) -> None:
    proto = _proto(kind)
    result = _optimized(proto, tmp_path, precision="fp32")
    assert [n.op_type for n in result.model.graph.node].count("ConvBNAct") == 2
    assert_equal(proto, result.model)
    assert_equal(proto, result.model, {"x": -feeds(proto)["x"] - 5})


def test_a_heavy_op_inside_a_branch_is_listed(tmp_path: Path) -> None:
    result = _optimized(_proto("If"), tmp_path)
    (entry,) = result.plan.unclaimed
    assert (entry.op, entry.name) == ("Conv", "inner_conv")
    assert "subgraph of If" in entry.reason


def test_a_captured_tensor_has_one_pair_and_its_subgraph_reads_float(tmp_path: Path) -> None:
    """The captured map is read by a quantized convolution too."""
    net = Net()
    x = _conv_relu(net, net.input("x", 2, 8, 8, 8))
    proto = net.proto(net.op("Add", _loop(net, x), _conv_relu(net, x)))
    result = _optimized(proto, tmp_path)
    assert_equal(proto, strip_qdq(result.model), None, 1e-3)  # half weights are rounded
    assert result.placement is not None
    assert [s.tensor for s in result.placement.activations] == ["x", x]
    (body,) = _bodies(result.model, "Loop")
    assert ("Add", ["carried", x]) in body


def test_a_file_whose_only_large_weight_is_in_a_branch_is_whole(tmp_path: Path) -> None:
    """It lies in the job's folder on the way, as those of the main graph do."""
    net = Net()
    proto = net.proto(net.op("Relu", _if(net, net.input("x", 2, 8, 8, 8))))
    _optimized(proto, tmp_path)
    written = onnx.load(tmp_path / "out.onnx")
    assert_equal(proto, written, None, 1e-3)
