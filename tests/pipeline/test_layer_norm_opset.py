"""A model older than opset 17 that writes a LayerNorm out is raised to 17, if that keeps it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from building import Net, assert_equal

from fusewright import RandomSamples, inspect, optimize
from fusewright.errors import ModelError, VerifyError
from fusewright.graph.opset import convert_opset, has_layer_norm_chain
from fusewright.pipeline import prepare
from fusewright.pipeline.trace import Trace

WIDTH = 6


def _chain(net: Net, x: str, power: str = "Pow") -> str:
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    square = net.op("Pow", centred, 2.0) if power == "Pow" else net.op("Mul", centred, centred)
    std = net.op("Sqrt", net.op("Add", net.op("ReduceMean", square, axes=[-1]), 1e-5))
    y = net.op("Mul", net.op("Div", centred, std), net.positive(WIDTH))
    return net.op("Add", y, net.draw(WIDTH))


def _model(opset: int, power: str = "Pow") -> onnx.ModelProto:
    net = Net(opset)
    y = _chain(net, net.input("x", "n", 5, WIDTH), power)
    return net.proto(net.op("Add", net.op("MatMul", y, net.draw(WIDTH, 7)), net.draw(7)))


def _saved(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "net.onnx"
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("opset", [9, 11, 13, 16])
def test_raised_and_proven(opset: int, tmp_path: Path) -> None:
    proto = _model(opset)
    result = optimize(_saved(proto, tmp_path), None, RandomSamples(4), precision="fp32")
    assert result.plan.model.opset == 17
    assert result.proofs["clean opset"].is_within(1e-5)
    assert result.plan.counts() == {"LayerNorm": 1, "Linear": 1}
    assert_equal(proto, result.plan.model)
    (event,) = [e for e in result.trace if e.name == "opset conversion"]
    assert event.detail == f"{opset} → 17"


@pytest.mark.parametrize("power", ["Pow", "Mul"])
def test_chain_is_seen(power: str) -> None:
    assert has_layer_norm_chain(_model(13, power))


def test_others_are_not_raised(tmp_path: Path) -> None:
    net = Net(13)
    x = net.op("Sub", net.input("x", "n", 4, 6, 6), net.op("ReduceMean", "x", axes=[1]))
    proto = net.proto(net.op("ReduceMean", net.op("Pow", net.conv(x, 4, 4), 2.0), axes=[2, 3]))
    assert not has_layer_norm_chain(proto)
    assert inspect(_saved(proto, tmp_path), precision="int8").model.opset == 13


def test_the_chain_stays_where_conversion_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(proto: onnx.ModelProto, minimum: int) -> onnx.ModelProto:
        if minimum == 17:
            raise ModelError("no adapter")
        return convert_opset(proto, minimum)

    monkeypatch.setattr(prepare, "convert_opset", fails)
    trace = Trace()
    plan = inspect(_saved(_model(11), tmp_path), trace=trace, precision="int8")
    assert plan.model.opset == 13
    assert plan.counts() == {"LayerNorm": 1, "Linear": 1}
    (note,) = [e for e in trace if e.what == "note"]
    assert note.detail == "LayerNorm stays a chain: no adapter"


def test_the_chain_stays_where_conversion_does_not_keep_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(proto: onnx.ModelProto, minimum: int) -> onnx.ModelProto:
        converted = convert_opset(proto, minimum)
        if minimum == 17:
            next(n for n in converted.graph.node if n.op_type == "Sqrt").op_type = "Exp"
        return converted

    monkeypatch.setattr(prepare, "convert_opset", breaks)
    path = _saved(_model(11), tmp_path)
    result = optimize(path, None, RandomSamples(4), precision="fp32")
    assert result.plan.model.opset == 13
    assert result.plan.counts() == {"LayerNorm": 1, "Linear": 1}
    (undone,) = result.trace.undone()
    assert (undone.name, undone.detail) == ("opset conversion", "LayerNorm stays a chain")
    with pytest.raises(VerifyError, match="opset conversion changes the model's results"):
        optimize(path, None, RandomSamples(4), precision="fp32", strict=True)
