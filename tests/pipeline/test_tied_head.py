"""An output head that is the embedding table: stored once, in the file and in the plan's words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from building import Net, run
from onnx import TensorProto, numpy_helper

from fusewright import Result, inspect, optimize, strip_qdq

ROWS, WIDTH = 320, 32
KINDS = ("transpose", "gemm", "also out", "also read", "twice", "outliers")


def _net(kind: str = "transpose") -> onnx.ModelProto:
    """Embedding → Linear with a residual → norm → head; `ids` are the only input."""
    net = Net()
    table = net.store(net.random.standard_normal((ROWS, WIDTH)), "table")
    ids = net.input("ids", 1, 6, dtype=np.int64)
    x = net.op("Gather", table, ids, name="embedding")
    if kind == "twice":  # one table for two inputs, as T5 has it
        x = net.op("Add", x, net.op("Gather", table, net.input("more", 1, 6, dtype=np.int64)))
    y = net.op("Add", net.op("MatMul", x, net.draw(WIDTH, WIDTH)), net.draw(WIDTH))
    gamma = net.random.uniform(0.5, 1.5, WIDTH)
    if kind == "outliers":  # SmoothQuant would have much to move
        gamma[::8] *= 60
    x = net.op("LayerNormalization", net.op("Add", x, y), net.store(gamma), net.draw(WIDTH))
    outputs = [table] if kind == "also out" else []
    if kind == "also read":
        shift = net.op("ReduceMean", net.op("Cast", ids, to=TensorProto.FLOAT))
        outputs.append(net.op("Add", table, shift))
    if kind == "gemm":
        x = net.op("Reshape", x, net.store([-1, WIDTH], dtype=np.int64))
        head = net.op("Gemm", x, table, transB=1, name="head")
    else:
        head = net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0]), name="head")
    return net.proto(head, *outputs)


def _feeds(proto: onnx.ModelProto, seed: int, count: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [
        {value.name: random.integers(0, ROWS, (1, 6)) for value in proto.graph.input}
        for _ in range(count)
    ]


def _optimized(tmp_path: Path, proto: onnx.ModelProto, **settings: object) -> Result:
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    return optimize(path, tmp_path / "out.onnx", _feeds(proto, 0, 8), strict=True, **settings)


def _tables(proto: onnx.ModelProto) -> list[int]:
    """Types of the stored tensors that are as large as the table."""
    return [t.data_type for t in proto.graph.initializer if np.prod(t.dims) == ROWS * WIDTH]


def _head(result: Result) -> tuple[str, str]:
    (group,) = [group for group in result.plan.groups if "head" in group.nodes]
    return group.decision, group.reason


def _worst(proto: onnx.ModelProto, out: Path) -> float:
    """SQNR of the head in dB on other tokens, at the worse of two levels of onnxruntime."""
    (feed,) = _feeds(proto, 1, 1)
    expected, found = run(proto, feed)[0], []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        session = ort.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
        error = session.run(None, feed)[0].astype(np.float64) - expected
        found.append(10 * np.log10((expected**2).sum() / (error**2).sum()))
    return min(found)


@pytest.mark.parametrize(
    ("precision", "stored"),
    [
        ("int8", [TensorProto.INT8]),
        ("int8+fp16", [TensorProto.INT8]),
        ("fp16", [TensorProto.FLOAT16]),
        ("fp8+fp16", [TensorProto.FLOAT16]),
        ("int4+fp16", [TensorProto.FLOAT16]),
    ],
)
@pytest.mark.parametrize("kind", ["transpose", "gemm", "twice", "outliers"])
def test_the_table_is_stored_once(
    tmp_path: Path, kind: str, precision: str, stored: list[int]
) -> None:
    proto = _net(kind)
    result = _optimized(tmp_path, proto, precision=precision)
    assert _tables(result.model) == stored
    decision, reason = _head(result)
    quantized = precision.partition("+")[0]
    assert decision == (quantized if quantized == "int8" else "float")
    assert ("in float, one serves both" in reason) == (quantized in ("fp8", "int4"))
    assert any("both read one INT8 table" in note for note in result.notes) == (decision == "int8")
    assert _worst(proto, tmp_path / "out.onnx") > (24 if quantized in ("fp8", "int4") else 30)


@pytest.mark.parametrize("kind", ["also out", "also read"])
def test_a_table_that_others_read_stays_float_and_is_stored_once(tmp_path: Path, kind: str) -> None:
    proto = _net(kind)
    result = _optimized(tmp_path, proto, precision="int8")
    assert _tables(result.model) == [TensorProto.FLOAT]
    assert _head(result)[0] == "int8"
    assert not any("INT8 table" in note for note in result.notes)
    assert _worst(proto, tmp_path / "out.onnx") > 30


def test_a_format_that_is_asked_for_is_given(tmp_path: Path) -> None:
    proto = _net()
    asked = {"precision": "int8+fp16", "group_precision": ("head=fp8",)}
    result = _optimized(tmp_path, proto, **asked)
    assert _head(result)[0] == "fp8"
    assert _tables(result.model) == [TensorProto.FLOAT16]
    assert _worst(proto, tmp_path / "out.onnx") > 24


def test_a_head_of_its_own_keeps_its_weight(tmp_path: Path) -> None:
    """All but one number are the table's."""
    net = Net()
    values = net.random.standard_normal((ROWS, WIDTH)).astype(np.float32)
    x = net.op("Gather", net.store(values.copy(), "table"), net.input("ids", 1, 6, dtype=np.int64))
    values[3, 5] += 0.5
    proto = net.proto(net.op("MatMul", x, net.store(values.T, "own"), name="head"))
    result = _optimized(tmp_path, proto, precision="int8+fp16")
    assert _tables(result.model) == [TensorProto.FLOAT16] * 2
    assert _head(result)[0] == "int8"


def test_codes_are_those_of_the_pair(tmp_path: Path) -> None:
    proto = _net()
    stored = {
        t.name: numpy_helper.to_array(t)
        for t in _optimized(tmp_path, proto, precision="int8", flat=True).model.graph.initializer
    }
    (table,) = [
        numpy_helper.to_array(t) for t in proto.graph.initializer if t.dims == [ROWS, WIDTH]
    ]
    (codes,) = [array for array in stored.values() if array.shape == (ROWS, WIDTH)]
    (scale,) = [a for a in stored.values() if a.shape == (ROWS,) and a.dtype == np.float32]
    np.testing.assert_array_equal(codes, np.rint(table / scale[:, None]))
    assert np.abs(codes).max(axis=1).min() == 127


def test_the_file_is_read_and_stripped_again(tmp_path: Path) -> None:
    proto = _net()
    _optimized(tmp_path, proto, precision="int8+fp16")
    decisions = [g.decision for g in inspect(tmp_path / "out.onnx").groups if g.kind != "LayerNorm"]
    assert decisions == ["int8", "int8"]
    float_again = strip_qdq(tmp_path / "out.onnx")
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in float_again.graph.node}
    (feed,) = _feeds(proto, 1, 1)
    expected, found = run(proto, feed)[0], run(float_again, feed)[0]
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
