"""What onnxruntime's optimizer may do to a model, and what it may not."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net, assert_equal, run

from fusewright import RandomSamples, optimize
from fusewright.errors import ModelError
from fusewright.graph.clean import LEFT_OUT, clean
from fusewright.graph.workspace import Workspace, embed

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def _ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def test_shape_arithmetic_is_folded() -> None:
    net = Net()
    x = net.input("x", 2, 4, 8, 8)
    size = net.op("Gather", net.op("Shape", x), np.int64(0), axis=0)
    shape = net.op("Concat", net.op("Unsqueeze", size, [0]), [-1], axis=0)
    proto = net.proto(net.op("Relu", net.op("Reshape", x, shape)))
    cleaned = clean(proto)
    assert _ops(cleaned) == ["Reshape", "Relu"]
    assert_equal(proto, cleaned)


def test_a_dynamic_batch_stays_dynamic() -> None:
    net = Net()
    x = net.input("x", "batch", 4, 8, 8)
    size = net.op("Gather", net.op("Shape", x), np.int64(0), axis=0)
    shape = net.op("Concat", net.op("Unsqueeze", size, [0]), [-1], axis=0)
    proto = net.proto(net.op("Relu", net.op("Reshape", x, shape)))
    cleaned = clean(proto)
    for batch in (1, 3):
        feed = {"x": np.random.default_rng(0).standard_normal((batch, 4, 8, 8)).astype("f4")}
        assert np.array_equal(run(proto, feed)[0], run(cleaned, feed)[0])


def test_nothing_is_fused() -> None:
    net = Net()
    x = net.batchnorm(net.conv(net.input("x", 1, 4, 8, 8), 8, 4, bias=False), 8)
    x = net.op("Mul", net.op("Clip", net.op("Relu", x), 0.0, 6.0), net.positive(1, 8, 1, 1))
    x = net.op("Conv", net.op("Pad", x, [0, 0, 1, 1, 0, 0, 1, 1]), net.draw(8, 8, 3, 3))
    x = net.op("Add", net.op("MatMul", x, net.draw(8, 5)), net.draw(5))
    proto = net.proto(net.op("Transpose", net.op("Transpose", x, perm=[0, 2, 3, 1])))
    cleaned = clean(proto)
    assert _ops(cleaned) == _ops(proto)
    assert [n.name for n in cleaned.graph.node] == [n.name for n in proto.graph.node]
    assert "ConvBNFusion" in LEFT_OUT


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_rnn_has_one_activation_per_direction(direction: str) -> None:
    net, both = Net(), 2 if direction == "bidirectional" else 1
    weights = net.draw(both, 4, 3), net.draw(both, 4, 4)
    y = net.op("RNN", net.input("x", 5, 1, 3), *weights, hidden_size=4, direction=direction)
    proto = net.proto(y)
    cleaned = clean(proto)
    (node,) = cleaned.graph.node
    given = {a.name: list(a.strings) for a in node.attribute}
    assert given["activations"] == [b"Tanh"] * both
    assert_equal(proto, cleaned)


def test_only_used_domains_are_imported() -> None:
    net = Net()
    cleaned = clean(net.proto(net.op("Relu", net.input("x", 1, 4))))
    assert [(e.domain, e.version) for e in cleaned.opset_import] == [("", 17)]


def test_a_file_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError) as error:
        clean(tmp_path / "bad.onnx")
    assert "\n" not in str(error.value)


def _half(*extra: str, own_cast: bool = False) -> onnx.ModelProto:
    """Convolutions in float16; `extra` are operators, or types to cast to, behind them."""
    net = Net()
    x = net.input("x", 1, 4, 8, 8, dtype=np.float32 if own_cast else np.float16)
    x = net.op("Cast", x, to=FLOAT16) if own_cast else x
    x = net.op("Relu", net.conv(x, 8, 4, dtype=np.float16))
    y = net.op("MaxPool", net.op("Relu", net.conv(x, 8, 8, dtype=np.float16)), kernel_shape=[2, 2])
    for step in extra:
        kind = {"float": FLOAT, "float16": FLOAT16}.get(step)
        y = net.op(step, y) if kind is None else net.op("Cast", y, to=kind)
    return net.proto(y, x)


@pytest.mark.parametrize("own_cast", [False, True], ids=["fed in half", "fed in float"])
@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("Sigmoid",),
        ("float",),
        ("float", "Exp"),
        ("float", "Exp", "float16", "Tanh"),
    ],
    ids=" ".join,
)
def test_a_float16_model_stays_float16(extra: tuple[str, ...], own_cast: bool) -> None:
    """onnxruntime writes Casts to float32 around every kernel that it lacks on the CPU."""
    proto = _half(*extra, own_cast=own_cast)
    cleaned = clean(proto)
    onnx.checker.check_model(cleaned, full_check=True)
    before, after = _types(proto), _types(cleaned)
    assert [op for op, _ in after if op != "Cast"] == [op for op, _ in before if op != "Cast"]
    assert [row for row in after if row[0] != "Cast"] == [row for row in before if row[0] != "Cast"]
    assert_equal(proto, cleaned)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Gelu", "LeakyRelu"])
@pytest.mark.parametrize("around", [(), ("MatMul", "MatMul"), ("float16", "float")])
def test_a_float16_operator_is_not_written_out(op: str, around: tuple[str, ...]) -> None:
    """onnxruntime has no float16 kernel for it, and would leave ReduceMax, Sub, Exp and so on."""
    net = Net(opset=20)
    x = net.input("x", 3, 8, 8, dtype=np.float32 if "float16" in around else np.float16)

    def step(y: str, what: str) -> str:
        if what == "MatMul":
            return net.op("MatMul", y, net.draw(8, 8, dtype=np.float16))
        return net.op("Cast", y, to=FLOAT16 if what == "float16" else FLOAT)

    y = net.op(op, step(x, around[0]) if around else x)
    # A second of its kind, on its result: a Cast to and fro that onnxruntime could drop.
    y = net.op(op, y)
    proto = net.proto(step(y, around[1]) if around else y)
    cleaned = clean(proto)
    onnx.checker.check_model(cleaned, full_check=True)
    assert _types(cleaned) == _types(proto)
    assert not any(n.startswith("Inserted") for node in cleaned.graph.node for n in node.output)
    assert_equal(proto, cleaned)


def test_a_norm_with_stored_weights_stays_in_float16() -> None:
    net = Net(opset=20)
    gamma, beta = (net.draw(8, dtype=np.float16) for _ in range(2))
    x = net.op("Softmax", net.input("x", 3, 8, dtype=np.float16))
    proto = net.proto(net.op("LayerNormalization", x, gamma, beta))
    assert _types(clean(proto)) == _types(proto)


@pytest.mark.parametrize("opset", [16, 18])
@pytest.mark.parametrize("channels", [8, 1024], ids=["in the file", "beside it"])
def test_a_stored_slope_stays_in_float16(channels: int, opset: int) -> None:
    """onnxruntime would leave Mul, Less and Where of a PRelu; its slope is read by others too."""
    net = Net(opset)
    slope = net.draw(channels, dtype=np.float16)
    x = net.op("PRelu", net.input("x", 3, channels, dtype=np.float16), slope)
    x = net.op("PRelu", net.op("Mul", x, slope), net.draw(channels, dtype=np.float16))
    proto = net.proto(x)
    with contextlib.closing(Workspace()) as workspace:
        cleaned = embed(clean(proto, workspace), workspace)
    onnx.checker.check_model(cleaned, full_check=True)
    assert _types(cleaned) == _types(proto)
    assert sorted(t.name for t in cleaned.graph.initializer) == sorted(
        t.name for t in proto.graph.initializer
    )
    assert_equal(proto, cleaned)


def test_a_float16_body_stays_as_it_is(tmp_path: Path) -> None:
    """onnxruntime's Casts inside If and its like are not taken out: nor is one let in."""
    net = Net(opset=19)
    x = net.op("Tanh", net.input("x", 2, 8, dtype=np.float16))
    body = [onnx.helper.make_node(op, [x], [op], op) for op in ("Softmax", "Sigmoid")]
    values = [onnx.helper.make_tensor_value_info(n.op_type, FLOAT16, [2, 8]) for n in body]
    branches = [
        onnx.helper.make_graph([node], node.op_type, [], [value])
        for node, value in zip(body, values, strict=True)
    ]
    which = net.input("which", dtype=np.bool_)
    y = net.op("If", which, then_branch=branches[0], else_branch=branches[1])
    proto = net.proto(net.op("Relu", y))
    onnx.save(proto, tmp_path / "net.onnx")
    result = optimize(tmp_path / "net.onnx", None, RandomSamples(4))
    assert not result.trace.undone()
    assert [node.op_type for node in result.model.graph.node] == ["Tanh", "If", "Relu"]
    (branch,) = [n for n in result.model.graph.node if n.op_type == "If"]
    inner = {node.op_type for a in branch.attribute for node in a.g.node}
    assert inner == {"Softmax", "Sigmoid"}
    assert_equal(proto, result.model)


def test_types_that_the_file_states_are_those_behind(tmp_path: Path) -> None:
    """onnxconverter-common writes value_info, and with keep_io_types a Cast at either end."""
    proto = onnx.shape_inference.infer_shapes(_half("float", own_cast=True))
    onnx.save(proto, tmp_path / "net.onnx")
    result = optimize(tmp_path / "net.onnx", None, RandomSamples(2), precision="fp16")
    assert not result.trace.undone()
    assert_equal(proto, result.model)


def test_an_index_of_float16_values_is_the_same() -> None:
    """ArgMax reads them in float32: the Cast that onnxruntime put there is exact, and stays."""
    proto = _half("Flatten", "ArgMax")
    cleaned = clean(proto)
    onnx.checker.check_model(cleaned, full_check=True)
    assert _ops(cleaned).count("Cast") == 1
    assert_equal(proto, cleaned)


def _types(proto: onnx.ModelProto) -> list[tuple[str, list[int]]]:
    """Each operator with the element types it reads."""
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    known = {t.name: t.data_type for t in graph.initializer}
    known |= {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    return [(n.op_type, [known[name] for name in n.input if name]) for n in graph.node]


def test_a_float16_model_collapses_without_a_cast(tmp_path: Path) -> None:
    proto = _half()
    onnx.save(proto, tmp_path / "net.onnx")
    result = optimize(tmp_path / "net.onnx", None, RandomSamples(2), precision="fp16")
    assert result.plan.counts() == {"ConvBNActMaxPool": 1, "ConvBNAct": 1}
    assert "Cast" not in _ops(result.model)
    assert_equal(proto, result.model)
