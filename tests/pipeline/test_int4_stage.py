"""INT4 weights in the pipeline: stored in four bits, nothing else quantized, each method run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net
from onnx import TensorProto

from fusewright import RandomSamples, optimize
from fusewright.errors import DataError, UsageError
from fusewright.quantize.existing import count_qdq

WIDTH, HIDDEN = 128, 256


def _net() -> onnx.ModelProto:
    net = Net(17)
    x = net.op(
        "LayerNormalization",
        net.input("x", "batch", 6, WIDTH),
        net.draw(WIDTH),
        net.draw(WIDTH),
        axis=-1,
    )
    y = net.op("MatMul", x, net.store(_weight(net, WIDTH, HIDDEN)), name="up")
    y = net.op("MatMul", net.op("Relu", y), net.store(_weight(net, HIDDEN, WIDTH)), name="down")
    # 40 input channels: no block of 32 divides them.
    z = net.op("Slice", y, [0], [40], [2])
    return net.proto(net.op("MatMul", z, net.store(_weight(net, 40, 16)), name="odd"))


def _weight(net: Net, inputs: int, outputs: int) -> np.ndarray:
    values = net.random.standard_normal((inputs, outputs)) / np.sqrt(inputs)
    return values.astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(_net(), path)
    return path


DATA = RandomSamples(8)


@pytest.mark.parametrize("method", ["rtn", "awq", "gptq"])
@pytest.mark.parametrize("rest", ["", "+fp16"])
def test_weights_are_stored_in_four_bits(path: Path, method: str, rest: str) -> None:
    result = optimize(path, None, DATA, precision=f"int4{rest}", int4_method=method)
    stored = [t for t in result.model.graph.initializer if t.data_type == TensorProto.INT4]
    assert sorted(tuple(t.dims) for t in stored) == [(WIDTH, HIDDEN), (HIDDEN, WIDTH)]
    assert sum(len(t.raw_data) for t in stored) == WIDTH * HIDDEN
    assert "QuantizeLinear" not in {node.op_type for node in result.model.graph.node}
    assert count_qdq(result.model) == 2, "a DequantizeLinear for each weight"
    decisions = {g.nodes[0]: (g.decision, g.reason) for g in result.plan.groups if g.parameters}
    assert decisions["up"][0] == decisions["down"][0] == "int4"
    assert decisions["odd"][0] == "float"
    assert "40" in decisions["odd"][1]
    assert result.accuracy is not None
    assert 15 < result.accuracy.worst.sqnr_db < 60
    onnx.checker.check_model(result.model, full_check=True)


def test_methods_with_data_are_better(path: Path) -> None:
    found = {}
    for method in ("rtn", "gptq"):
        result = optimize(path, None, DATA, precision="int4", int4_method=method)
        assert result.accuracy is not None
        found[method] = result.accuracy.worst.sqnr_db
    assert found["gptq"] > found["rtn"]


def test_the_block_that_is_asked_for(path: Path) -> None:
    for block in (32, 64, 128):
        result = optimize(path, None, DATA, precision="int4", int4_method="rtn", block_size=block)
        restored = [n for n in result.model.graph.node if n.op_type == "DequantizeLinear"]
        sizes = {a.i for n in restored for a in n.attribute if a.name == "block_size"}
        assert max(sizes) == min(block, 128)


def test_mixed_with_int8(path: Path) -> None:
    result = optimize(path, None, DATA, group_precision=("down=int4", "up=int8"))
    kinds = {t.data_type for t in result.model.graph.initializer}
    assert TensorProto.INT4 in kinds
    assert count_qdq(result.model) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"int4_method": "best"}, "no INT4 method 'best': choose rtn, awq, gptq"),
        ({"block_size": 48}, "INT4 block of 48 channels: choose 32, 64, 128"),
    ],
)
def test_refused(path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        optimize(path, None, DATA, precision="int4", **settings)


def test_samples_that_come_once(path: Path) -> None:
    feeds = ({"x": np.ones((1, 6, WIDTH), np.float32)} for _ in range(4))
    with pytest.raises(DataError, match="these come once: give a file or folder, or"):
        optimize(path, None, feeds, precision="int4")
