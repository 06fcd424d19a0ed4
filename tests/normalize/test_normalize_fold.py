"""BN, scale and bias behind a convolution or a Linear."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from building import Net, as_model, assert_equal, ops
from rewriting import Row, assert_left_alone, assert_rewritten, rewrite

from fusewright.normalize import normalize


def _x(net: Net, channels: int = 4, rank: int = 2) -> str:
    return net.input("x", "n", channels, *(8,) * rank)


def _deconv(net: Net, x: str, into: int, out: int, group: int = 1, bias: bool = True) -> str:
    operands = [net.draw(into, out // group, 3, 3)] + ([net.draw(out)] if bias else [])
    return net.op("ConvTranspose", x, *operands, group=group, strides=[2, 2])


def _affine(net: Net, y: str, channels: int, *shape: int) -> str:
    """BN as Mul and Add, its constants of `shape`."""
    scaled = net.op("Mul", y, net.stored[net.positive(channels)].reshape(shape))
    return net.op("Add", scaled, net.stored[net.draw(channels)].reshape(shape))


def _then(op: str, *shape: int, swap: bool = False, **options: object):
    def build(net: Net) -> str:
        y = net.conv(_x(net), 6, 4, **options)
        c = net.positive(*shape)
        return net.op(op, c, y) if swap else net.op(op, y, c)

    return build


def _shared_weight(net: Net) -> tuple[str, str]:
    x, w = _x(net), net.draw(6, 4, 3, 3)
    first = net.batchnorm(net.conv(x, 6, 4, weight=w), 6)
    return first, net.op("Relu", net.conv(x, 6, 4, weight=w))


def _shared_bias(net: Net) -> tuple[str, str]:
    x, b = _x(net), net.draw(6, name="b")
    first, second = (net.op("Conv", x, net.draw(6, 4, 1, 1), b) for _ in range(2))
    return net.batchnorm(first, 6), second


BATCH_NORM = {
    "conv": Row(lambda n: n.batchnorm(n.conv(_x(n), 6, 4), 6), "Conv"),
    "without bias": Row(lambda n: n.batchnorm(n.conv(_x(n), 6, 4, bias=False), 6), "Conv"),
    "bias omitted by name": Row(
        lambda n: n.batchnorm(n.op("Conv", _x(n), n.draw(6, 4, 3, 3), None), 6), "Conv"
    ),
    "grouped conv": Row(lambda n: n.batchnorm(n.conv(_x(n), 6, 4, group=2), 6), "Conv"),
    "depthwise conv": Row(lambda n: n.batchnorm(n.conv(_x(n), 4, 4, group=4), 4), "Conv"),
    "Conv1D": Row(lambda n: n.batchnorm(n.conv(_x(n, rank=1), 6, 4, rank=1), 6), "Conv"),
    "Conv3D": Row(lambda n: n.batchnorm(n.conv(_x(n, rank=3), 6, 4, rank=3), 6), "Conv"),
    "large epsilon": Row(lambda n: n.batchnorm(n.conv(_x(n), 6, 4), 6, epsilon=0.3), "Conv"),
    "opset 9": Row(lambda n: n.batchnorm(n.conv(_x(n), 6, 4), 6), "Conv", opset=9),
    "ConvTranspose": Row(lambda n: n.batchnorm(_deconv(n, _x(n), 4, 6), 6), "ConvTranspose"),
    "ConvTranspose in groups": Row(
        lambda n: n.batchnorm(_deconv(n, _x(n), 4, 6, group=2), 6), "ConvTranspose"
    ),
    "ConvTranspose in groups, no bias": Row(
        lambda n: n.batchnorm(_deconv(n, _x(n), 4, 6, group=2, bias=False), 6), "ConvTranspose"
    ),
    "weight shared by two convs": Row(_shared_weight, "Conv Conv Relu"),
    "bias shared by two convs": Row(_shared_bias, "Conv Conv"),
    "BN twice": Row(lambda n: n.batchnorm(n.batchnorm(n.conv(_x(n), 6, 4), 6), 6), "Conv"),
    # tf2onnx writes Conv2D, BiasAdd, FusedBatchNorm so.
    "bias as Add, then BN": Row(
        lambda n: n.batchnorm(n.op("Add", _then("Mul", 6, 1, 1)(n), n.draw(6, 1, 1)), 6), "Conv"
    ),
    # Caffe's BatchNorm and Scale layers.
    "BN, then scale and shift": Row(
        lambda n: _affine(n, n.batchnorm(n.conv(_x(n), 6, 4), 6), 6, 1, 6, 1, 1), "Conv"
    ),
}

SCALE = {
    "Mul and Add, [C,1,1]": Row(lambda n: _affine(n, n.conv(_x(n), 6, 4), 6, 6, 1, 1), "Conv"),
    "Mul and Add, [1,C,1,1]": Row(lambda n: _affine(n, n.conv(_x(n), 6, 4), 6, 1, 6, 1, 1), "Conv"),
    "Mul and Add without bias": Row(
        lambda n: _affine(n, n.conv(_x(n), 6, 4, bias=False), 6, 1, 6, 1, 1), "Conv"
    ),
    "Mul and Add behind ConvTranspose": Row(
        lambda n: _affine(n, _deconv(n, _x(n), 4, 6, group=2), 6, 6, 1, 1), "ConvTranspose"
    ),
    "Mul and Add behind Conv1D": Row(
        lambda n: _affine(n, n.conv(_x(n, rank=1), 6, 4, rank=1), 6, 6, 1), "Conv"
    ),
    "bias Add": Row(_then("Add", 6, 1, 1), "Conv"),
    "bias Add to a conv without one": Row(_then("Add", 6, 1, 1, bias=False), "Conv"),
    "bias Add, operands swapped": Row(_then("Add", 1, 6, 1, 1, swap=True), "Conv"),
    "scalar of rank 0": Row(_then("Mul"), "Conv"),
    "scalar of rank 1": Row(_then("Add", 1), "Conv"),
    "scalar of rank 4": Row(_then("Mul", 1, 1, 1, 1, swap=True), "Conv"),
    "Sub": Row(_then("Sub", 6, 1, 1), "Conv"),
    "Div": Row(_then("Div", 1, 6, 1, 1), "Conv"),
    "Sub and Div": Row(
        lambda n: n.op("Div", n.op("Sub", n.conv(_x(n), 6, 4), n.draw(6, 1, 1)), 0.7), "Conv"
    ),
    # [W] with W = 1 channel: it is the one element that counts.
    "one channel": Row(lambda n: n.op("Add", n.conv(_x(n), 1, 4), n.draw(1, 1)), "Conv"),
}

LINEAR = {
    "MatMul": Row(lambda n: n.batchnorm(n.op("MatMul", _rows(n), n.draw(5, 7)), 7), "MatMul Add"),
    "MatMul and Add": Row(
        lambda n: n.batchnorm(
            n.op("Add", n.op("MatMul", _rows(n), n.draw(5, 7)), n.draw(7, name="b")), 7
        ),
        "MatMul Add",
    ),
    "Gemm": Row(
        lambda n: n.batchnorm(n.op("Gemm", _rows(n), n.draw(7, 5), n.draw(7), transB=1), 7),
        "MatMul Add",
    ),
    "scalar bias": Row(
        lambda n: n.batchnorm(n.op("Gemm", _rows(n), n.draw(5, 7), 0.3), 7), "MatMul Add"
    ),
}


def _rows(net: Net) -> str:
    return net.input("x", "n", 5)


def _used_twice(net: Net) -> tuple[str, str]:
    y = net.conv(_x(net), 6, 4)
    return net.batchnorm(y, 6), net.op("Relu", y)


def _conv_is_output(net: Net) -> tuple[str, str]:
    y = net.conv(_x(net), 6, 4)
    return net.batchnorm(y, 6), y


def _training(net: Net) -> tuple[str, ...]:
    y = net.conv(net.input("x", 2, 4, 8, 8), 6, 4)
    return net.batchnorm(y, 6, outputs=3, training_mode=1)


def _computed_parameter(net: Net) -> str:
    gamma = net.op("Abs", net.input("g", 6))
    stored = [net.draw(6), net.draw(6), net.positive(6)]
    return net.op("BatchNormalization", net.conv(_x(net), 6, 4), gamma, *stored)


def _computed_weight(net: Net) -> str:
    w = net.op("Tanh", net.input("k", 6, 4, 3, 3))
    return net.batchnorm(net.op("Conv", _x(net), w), 6)


NO_BATCH_NORM = {
    "conv used twice": Row(_used_twice, "used elsewhere"),
    "conv is an output of the model": Row(_conv_is_output, "used elsewhere"),
    "training mode": Row(_training, "training mode"),
    "computed parameter": Row(_computed_parameter, "computed tensor 'Abs"),
    "computed weight": Row(_computed_weight, "computed tensor 'Tanh"),
    "nothing in front": Row(lambda n: n.batchnorm(_x(n), 4), "found the input 'x'"),
    "behind an activation": Row(
        lambda n: n.batchnorm(n.op("Relu", n.conv(_x(n), 6, 4)), 6), "found Relu"
    ),
}

NO_SCALE = {
    "one value per column": Row(_then("Add", 8), "not per channel"),
    # As many columns as channels, and still the wrong axis.
    "one value per column, as many as channels": Row(
        lambda n: n.op("Mul", n.conv(_x(n), 8, 4), n.positive(8)), "not per channel"
    ),
    "one value per row": Row(
        lambda n: n.op("Mul", n.conv(_x(n), 8, 4), n.positive(8, 1)), "not per channel"
    ),
    "one value per pixel": Row(_then("Mul", 1, 1, 8, 8), "not per channel"),
    "one value per element": Row(_then("Add", 6, 8, 8), "not per channel"),
    "a constant that enlarges the rank": Row(_then("Add", 1, 1, 1, 1, 1), "not per channel"),
    "a constant that enlarges the batch": Row(
        lambda n: n.op("Add", n.conv(n.input("x", 1, 4, 8, 8), 6, 4), n.draw(3, 6, 1, 1)),
        "not per channel",
    ),
    "a constant that enlarges the channels": Row(
        lambda n: n.op("Mul", n.conv(_x(n), 1, 4), n.positive(6, 1, 1)), "not per channel"
    ),
    "constant minus conv": Row(_then("Sub", 6, 1, 1, swap=True), "found the constant"),
    "constant over conv": Row(_then("Div", 6, 1, 1, swap=True), "found the constant"),
    "two computed operands": Row(
        lambda n: n.op("Add", n.conv(_x(n), 4, 4), "x"), "computed tensor 'x'"
    ),
}

NO_LINEAR = {
    # BN normalizes axis 1, which is not what the Linear writes; sizes agree by chance.
    "tokens in the channel axis": Row(
        lambda n: n.batchnorm(n.op("MatMul", n.input("x", 2, 7, 5), n.draw(5, 7)), 7), "rank 2"
    ),
    "fewer tokens than features": Row(
        lambda n: n.batchnorm(n.op("MatMul", n.input("x", 2, 3, 5), n.draw(5, 7)), 3), "rank 2"
    ),
    "training mode": Row(
        lambda n: n.batchnorm(
            n.op("MatMul", n.input("x", 4, 5), n.draw(5, 7)), 7, outputs=3, training_mode=1
        ),
        "training mode",
    ),
}


@pytest.mark.parametrize("row", BATCH_NORM.values(), ids=list(BATCH_NORM))
def test_batch_norm_is_folded(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize("row", SCALE.values(), ids=list(SCALE))
def test_scale_and_bias_are_folded(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize("row", LINEAR.values(), ids=list(LINEAR))
def test_batch_norm_behind_linear_is_folded(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize("row", NO_BATCH_NORM.values(), ids=list(NO_BATCH_NORM))
def test_batch_norm_stays(row: Row) -> None:
    assert_left_alone("FoldBatchNorm", row)


@pytest.mark.parametrize("row", NO_SCALE.values(), ids=list(NO_SCALE))
def test_scale_stays(row: Row) -> None:
    assert_left_alone("FoldScale", row)


@pytest.mark.parametrize("row", NO_LINEAR.values(), ids=list(NO_LINEAR))
def test_batch_norm_behind_linear_stays(row: Row) -> None:
    assert_left_alone("FoldLinearBatchNorm", row)


def test_shared_weight_is_copied_not_changed() -> None:
    proto = Row(_shared_weight, "").proto()
    model, _ = rewrite(proto)
    first, second = (node.inputs[1] for node in model.graph.nodes if node.op == "Conv")
    assert first is not second
    original = next(t for t in proto.graph.initializer if t.name == second.name)
    assert np.array_equal(np.frombuffer(original.raw_data, np.float32), second.values.ravel())


def test_weight_that_is_an_output_keeps_its_value() -> None:
    net = Net()
    w = net.draw(6, 4, 3, 3)
    proto = net.proto(net.batchnorm(net.conv(_x(net), 6, 4, weight=w), 6), w)
    rewrite(proto)


def test_conv_stands_for_what_was_folded_into_it() -> None:
    net = Net()
    proto = net.proto(net.op("Add", net.batchnorm(net.conv(_x(net), 6, 4), 6), net.draw(6, 1, 1)))
    names = [node.name for node in proto.graph.node]
    model, _ = rewrite(proto)
    (conv,) = model.graph.nodes
    assert Counter(model.origin(conv)) == Counter(names)


def test_division_by_zero_stays() -> None:
    net = Net()
    y = net.conv(_x(net), 6, 4)
    model = as_model(net.proto(net.op("Div", y, np.array([[[0.0]]] + [[[2.0]]] * 5, np.float32))))
    (miss,) = next(o for o in normalize(model) if o.rule == "FoldScale").misses
    assert "a zero" in str(miss)
    assert ops(model) == "Conv Div"


def test_float16_stays_float16() -> None:
    net = Net()
    x = net.input("x", 1, 4, 8, 8, dtype=np.float16)
    y = net.batchnorm(net.conv(x, 6, 4, dtype=np.float16), 6, dtype=np.float16)
    proto = net.proto(y)
    model = as_model(proto)
    normalize(model)
    (conv,) = model.graph.nodes
    assert {t.dtype for t in conv.inputs[1:]} == {np.dtype(np.float16)}
    assert_equal(proto, model, tolerance=2e-3)
