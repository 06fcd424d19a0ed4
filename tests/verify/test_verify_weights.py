"""Weights computed once are, bit for bit, what onnxruntime computes in every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from building import Net
from onnx import TensorProto, numpy_helper

from fusewright import RandomSamples, optimize
from fusewright.graph.light import byte_size
from fusewright.graph.session import open_session, run_session, session_options
from fusewright.verify import LEVELS, with_quantized_weights
from fusewright.verify.weights import with_computed_weights

SHAPE = (128, 16, 3, 3)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def _pair(net: Net, x: str, scale: np.ndarray, *, back: np.ndarray | None = None) -> str:
    axis = {"axis": 0} if scale.ndim else {}
    zero = net.store(np.zeros(scale.shape, np.int8), dtype=None)
    y = net.op("QuantizeLinear", x, net.store(scale), zero, **axis)
    back = scale if back is None else back
    return net.op("DequantizeLinear", y, net.store(back), zero, **axis)


def _values(net: Net) -> np.ndarray:
    """Many on the border between two steps, some that saturate."""
    codes = net.random.integers(-300, 300, SHAPE) / 2
    return (codes * 0.0625).astype(np.float32)


def _per_tensor(net: Net) -> str:
    return _pair(net, net.store(_values(net)), np.float32(0.0625))


def _per_channel(net: Net) -> str:
    scales = net.random.uniform(1e-3, 0.1, SHAPE[0]).astype(np.float32)
    return _pair(net, net.store(net.random.standard_normal(SHAPE).astype(np.float32)), scales)


def _half(net: Net) -> str:
    """As a rounding twin has it: stored in half, and rounded to half behind the pair."""
    weight = net.store(net.random.standard_normal(SHAPE).astype(np.float16), dtype=None)
    scales = net.random.uniform(1e-3, 0.1, SHAPE[0]).astype(np.float16).astype(np.float32)
    scales = net.op("Cast", net.store(scales.astype(np.float16), dtype=None), to=TensorProto.FLOAT)
    zero = net.store(np.zeros(SHAPE[0], np.int8), dtype=None)
    y = net.op("Cast", weight, to=TensorProto.FLOAT)
    y = net.op("QuantizeLinear", y, scales, zero, axis=0)
    y = net.op("DequantizeLinear", y, scales, zero, axis=0)
    return net.op("Cast", net.op("Cast", y, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)


def _model(weight: str, net: Net) -> onnx.ModelProto:
    return net.proto(net.op("Mul", net.input("x", 1), weight))


@pytest.mark.parametrize("make", [_per_tensor, _per_channel, _half])
def test_bit_for_bit(make, tmp_path: Path) -> None:
    net = Net(19)
    model = _model(make(net), net)
    before = model.SerializeToString()
    made = with_computed_weights(model, tmp_path, tmp_path / "w.bin")
    assert model.SerializeToString() == before
    left = [node.op_type for node in made.graph.node]
    assert left == (["Cast", "Mul"] if make is _half else ["Mul"]), "but for the Cast of a scale"
    onnx.save(made, tmp_path / "made.onnx")
    feed = {"x": np.ones(1, np.float32)}
    (found,) = run_session(open_session(tmp_path / "made.onnx"), feed)
    (expected,) = run_session(open_session(before), feed)
    assert np.array_equal(found, expected)


def _read_in_the_middle(net: Net) -> tuple[onnx.ModelProto, list[str]]:
    weight = net.store(_values(net))
    step, zero = net.store(np.float32(0.0625)), net.store(np.int8(0), dtype=None)
    q = net.op("QuantizeLinear", weight, step, zero)
    y = net.op("Mul", net.op("DequantizeLinear", q, step, zero), net.input("x", 1))
    return net.proto(y, q), ["QuantizeLinear", "DequantizeLinear", "Mul"]


def _zero_point(net: Net) -> tuple[onnx.ModelProto, list[str]]:
    weight = net.store(_values(net))
    step, zero = net.store(np.float32(0.0625)), net.store(np.int8(3), dtype=None)
    q = net.op("QuantizeLinear", weight, step, zero)
    y = net.op("Mul", net.op("DequantizeLinear", q, step, zero), net.input("x", 1))
    return net.proto(y), ["QuantizeLinear", "DequantizeLinear", "Mul"]


def _activation(net: Net) -> tuple[onnx.ModelProto, list[str]]:
    return net.proto(_pair(net, net.input("x", *SHAPE), np.float32(0.1))), [
        "QuantizeLinear",
        "DequantizeLinear",
    ]


@pytest.mark.parametrize("make", [_read_in_the_middle, _zero_point, _activation])
def test_what_stays(make, tmp_path: Path) -> None:
    model, ops = make(Net(19))
    made = with_computed_weights(model, tmp_path, tmp_path / "w.bin")
    assert [node.op_type for node in made.graph.node] == ops


@pytest.mark.parametrize("make", [_per_tensor, _per_channel, _half])
def test_codes_are_computed_from_bit_for_bit(make, tmp_path: Path) -> None:
    net = Net(19)
    model = _model(make(net), net)
    before = model.SerializeToString()
    coded = with_quantized_weights(model, tmp_path, tmp_path / "codes.bin")
    assert model.SerializeToString() == before
    assert "QuantizeLinear" not in [node.op_type for node in coded.graph.node]
    assert all(byte_size(t) < 1 << 14 for t in coded.graph.initializer if t.data_type in _FLOATS)
    made = with_computed_weights(coded, tmp_path, tmp_path / "w.bin")
    assert "DequantizeLinear" not in [node.op_type for node in made.graph.node]
    feed = {"x": np.ones(1, np.float32)}
    (expected,) = run_session(open_session(before), feed)
    for name, proto in (("coded", coded), ("made", made)):
        onnx.save(proto, tmp_path / f"{name}.onnx")
        (found,) = run_session(open_session(tmp_path / f"{name}.onnx"), feed)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("make", [_zero_point, _activation])
def test_what_has_no_codes(make, tmp_path: Path) -> None:
    model, _ = make(Net(19))
    assert with_quantized_weights(model, tmp_path, tmp_path / "w.bin") is model


def test_a_weight_that_a_body_reads_stays(tmp_path: Path) -> None:
    """Beside its codes; and a value that a body reads is computed at its place."""
    net = Net(19)
    weight = net.store(_values(net))
    step, zero = net.store(np.float32(0.0625)), net.store(np.int8(0), dtype=None)
    q = net.op("QuantizeLinear", weight, step, zero)
    back = net.op("DequantizeLinear", q, step, zero)
    bodies = {
        f"{when}_branch": onnx.helper.make_graph(
            [onnx.helper.make_node("Add", [weight, back], [when])],
            when,
            [],
            [onnx.ValueInfoProto(name=when)],
        )
        for when in ("then", "else")
    }
    y = net.op("If", net.store(np.bool_(True), dtype=None), **bodies)
    model = net.proto(net.op("Mul", net.op("Mul", y, back), net.input("x", 1)))
    feed = {"x": np.ones(1, np.float32)}
    (expected,) = run_session(open_session(model.SerializeToString()), feed)
    for make in (with_quantized_weights, with_computed_weights):
        made = make(model, tmp_path, tmp_path / "w.bin")
        assert weight in {tensor.name for tensor in made.graph.initializer}
        onnx.save(made, tmp_path / "made.onnx")
        (found,) = run_session(open_session(tmp_path / "made.onnx"), feed)
        assert np.array_equal(found, expected)


def _convs() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 32, 6, 6), 32, 32))
    x = net.op("Add", net.conv(x, 32, 32), x)
    return net.proto(net.conv(x, 32, 32))


def _linears() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", 1, 4, 128)
    for _ in range(2):
        x = net.op(
            "Relu", net.op("Add", net.op("MatMul", x, net.draw(128, 128)), net.positive(128))
        )
    return net.proto(net.op("MatMul", x, net.draw(128, 128)))


def _optimized(path: Path, level: str) -> tuple[list[str], list[bytes]]:
    """The operators of what a level makes of a file, and its stored values."""
    options = session_options()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    written = path.with_suffix(f".{level}.onnx")
    options.optimized_model_filepath = str(written)
    open_session(path, options=options)
    graph = onnx.load(written).graph
    kinds = [f"{node.op_type} {sorted(map(str, node.attribute))}" for node in graph.node]
    return sorted(kinds), sorted(numpy_helper.to_array(t).tobytes() for t in graph.initializer)


@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
@pytest.mark.parametrize("make", [_convs, _linears])
def test_each_level_makes_the_same_of_codes(make, precision: str, tmp_path: Path) -> None:
    """What the optimizer does is looked at on codes: it begins by making them itself."""
    source, path, coded = (tmp_path / f"{name}.onnx" for name in ("source", "result", "coded"))
    onnx.save(make(), source)
    optimize(source, path, RandomSamples(2), precision=precision)
    model = onnx.load(path)
    made = with_quantized_weights(model, tmp_path, tmp_path / "codes.bin")
    assert len(made.graph.node) < len(model.graph.node)
    onnx.save(made, coded)
    for level in LEVELS:
        assert _optimized(coded, level) == _optimized(path, level)
