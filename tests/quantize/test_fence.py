"""Sums of one input in front of quantizers: where they stand, and that `strip_qdq` takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from building import Net
from quantizing import quantized

import fusewright
from fusewright.graph.walk import passes_on, producer
from fusewright.plan.decide import Rules
from fusewright.quantize.fence import fence
from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE
from fusewright.quantize.strip import strip_qdq


def _two_convs(
    bias: float = 1.0, weight: float = 1.0, act: str = "Relu", skip: bool = False
) -> Net:
    net = Net(19)
    first = net.stored[net.draw(8, 8, 3, 3)] * np.float32(weight)
    biases = np.full(8, bias, np.float32)
    x = net.op("Conv", net.input("x", 1, 8, 8, 8), first, biases, pads=[1, 1, 1, 1])
    x = net.op(act, x) if act else x
    y = net.conv(x, 8, 8)
    net.op("Add", y, net.op("Sin", x), name="end") if skip else net.op("Neg", y, name="end")
    return net


FP8 = Rules(quantized="fp8")


@pytest.mark.parametrize(
    ("net", "rules", "count"),
    [
        (_two_convs(), Rules(), 0),
        (_two_convs(weight=1e-9), Rules(), 1),
        (_two_convs(weight=1e-9, act=""), Rules(), 1),
        # Not a Relu, and not the only reader: onnxruntime does not look through either.
        (_two_convs(weight=1e-9, act="Tanh"), Rules(), 0),
        (_two_convs(weight=1e-9, skip=True), Rules(), 0),
        (_two_convs(weight=1e-9, bias=0.0), Rules(), 0),
        (_two_convs(), FP8, 1),
        (_two_convs(act="Tanh"), FP8, 0),
        (_two_convs(skip=True), FP8, 0),
    ],
    ids=["plain", "dead", "no Relu", "Tanh", "read twice", "no bias", "FP8", "Tanh, FP8", "2, FP8"],
)
def test_where_they_stand(net: Net, rules: Rules, count: int) -> None:
    graph = quantized(net, "end_y", rules=rules)
    found = fence(graph)
    sums = [node for node in graph.nodes if passes_on(node)]
    assert len(sums) == len(found) == count
    assert all(node.o().op == QUANTIZE for node in sums)
    assert [node.inputs[0].name for node in sums] == found


@pytest.mark.parametrize(("weight", "count"), [(1.0, 0), (1e-9, 1)])
def test_what_is_added_may_be_a_map(weight: float, count: int) -> None:
    """Stored values of every position, of which the last axis alone is of channels."""
    net = Net(19)
    x = net.op("MatMul", net.input("x", 1, 6, 8), net.stored[net.draw(8, 4)] * np.float32(weight))
    x = net.op("Relu", net.op("Add", x, np.ones((6, 4), np.float32)))
    net.op("Neg", net.op("MatMul", x, net.draw(4, 4)), name="end")
    assert len(fence(quantized(net, "end_y"))) == count


@pytest.mark.parametrize("opset", [20, 21])
def test_a_newer_opset_has_one_behind_each_pair(opset: int) -> None:
    graph = quantized(_two_convs(), "end_y")
    graph.opset = opset
    fence(graph)
    restored = [
        n for n in graph.nodes if n.op == DEQUANTIZE and producer(n.inputs[0].inputs[0].inputs[0])
    ]
    assert {passes_on(node.o()) for node in restored} == {opset > 20}


def test_strip_takes_them_out() -> None:
    graph = quantized(_two_convs(weight=1e-9), "end_y")
    before = [node.op for node in _two_convs(weight=1e-9).model("end_y").graph.nodes]
    graph.opset = 21
    assert fence(graph)
    strip_qdq(graph)
    assert [node.op for node in graph.nodes] == before


def test_linears_with_half_scales_count_axes_from_the_end(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Tanh", net.op("MatMul", net.input("x", 4, 64), net.draw(64, 64)))
    onnx.save(net.proto(net.op("MatMul", x, net.draw(64, 64))), tmp_path / "net.onnx")
    data = {"x": np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)}
    for precision, axes in {"int8": {1}, "int8+fp16": {-1}, "int4": {0}, "int4+fp16": {-2}}.items():
        result = fusewright.optimize(tmp_path / "net.onnx", calibration=data, precision=precision)
        nodes = gs.import_onnx(result.model).nodes
        assert {node.attrs["axis"] for node in nodes if "axis" in node.attrs} == axes


def test_one_scale_of_a_half_weight_is_a_list(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Tanh", net.op("MatMul", net.input("x", 4, 64), net.draw(64, 64)))
    onnx.save(net.proto(net.op("MatMul", x, net.draw(64, 64))), tmp_path / "net.onnx")
    data = {"x": np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)}
    for precision, shapes in {"int8": {((), ())}, "int8+fp16": {((1,), (1,))}}.items():
        result = fusewright.optimize(
            tmp_path / "net.onnx", calibration=data, precision=precision, per_tensor_weights=True
        )
        nodes = gs.import_onnx(result.model).nodes
        weights = [n for n in nodes if n.op == QUANTIZE and isinstance(n.inputs[0], gs.Constant)]
        pairs = [pair for node in weights for pair in (node, node.o())]
        assert {tuple(tuple(t.shape) for t in n.inputs[1:]) for n in pairs} == shapes
        assert len(weights) == 2
