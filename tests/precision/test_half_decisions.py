"""What stays float32, and what does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from building import Net
from halving import Halved, halved, halved_proto
from onnx import TensorProto

from fusewright.errors import ModelError
from fusewright.precision import HalfOptions

Build = Callable[[Net], tuple[str, ...]]


def _linear(net: Net, x: str, into: int = 8, out: int = 8) -> str:
    return net.op("MatMul", x, net.draw(into, out))


def _start(net: Net) -> str:
    return _linear(net, net.input("x", 4, 8))


def cumulative(net: Net) -> tuple[str, ...]:
    return (_linear(net, net.op("CumSum", _start(net), np.int64(1))),)


def long_sum(net: Net) -> tuple[str, ...]:
    x = net.op("Reshape", _linear(net, net.input("x", 4, 8), 8, 512), [2, 1024])
    return (_linear(net, net.op("ReduceSum", x, [1], keepdims=1), 1),)


def large_pool(net: Net) -> tuple[str, ...]:
    x = net.op("Abs", net.op("Mul", net.conv(net.input("x", 1, 4, 64, 64), 4, 4), 8.0))
    return (net.conv(net.op("GlobalAveragePool", x), 4, 4, 1),)


def exponential(net: Net) -> tuple[str, ...]:
    return (_linear(net, net.op("Mul", net.op("Exp", _start(net)), net.positive(8))),)


def log_of_exponentials(net: Net) -> tuple[str, ...]:
    x = net.op("Mul", net.op("Tanh", _start(net)), 8.0)
    return (_linear(net, net.op("ReduceLogSumExp", x, axes=[1]), 1),)


def angles(net: Net) -> tuple[str, ...]:
    steps = net.op("Cast", net.input("i", 4, 1, dtype=np.int64), to=TensorProto.FLOAT)
    angle = net.op("Mul", steps, np.linspace(10, 40, 8, dtype=np.float32).reshape(1, 8))
    return (_linear(net, net.op("Sin", angle)),)


def index(net: Net) -> tuple[str, ...]:
    place = net.op("Floor", net.op("Mul", net.op("Sigmoid", _start(net)), 31.0))
    return (net.op("Gather", net.draw(32, 6), net.op("Cast", place, to=TensorProto.INT64)),)


def positions(net: Net) -> tuple[str, ...]:
    count = net.op("Mul", net.input("i", 4, 8, dtype=np.int64), np.int64(999))
    place = net.op("Sub", net.op("Cast", count, to=TensorProto.FLOAT), 7.0)
    return (_linear(net, net.op("Mul", place, 1e-4)),)


def table(net: Net) -> tuple[str, ...]:
    return (_linear(net, net.op("Add", _start(net), np.arange(3000, 3008, dtype=np.float32))),)


def scales(net: Net) -> tuple[str, ...]:
    x = net.conv(net.input("x", 1, 4, 8, 8), 4, 4)
    size = net.op("Cast", net.op("Shape", x), to=TensorProto.FLOAT)
    factor = net.op("Div", net.op("Mul", size, net.store([1, 1, 2, 2])), size)
    return (net.conv(net.op("Resize", x, None, factor, mode="linear"), 4, 4),)


def boxes(net: Net) -> tuple[str, ...]:
    x = net.input("x", 1, 6, 4)
    scores = net.op("Transpose", _linear(net, x, 4, 2), perm=[0, 2, 1])
    spread = net.op("Mul", _linear(net, x, 4, 4), 2.0)
    limits = (np.array([3], np.int64), np.float32([0.5]), np.float32([-9]))
    return (net.op("NonMaxSuppression", spread, scores, *limits),)


def small_divisor(net: Net) -> tuple[str, ...]:
    x = _start(net)
    small = net.op("Mul", net.op("Add", net.op("Abs", x), 1.0), np.float32([1e-6, *[1.0] * 7]))
    return (_linear(net, net.op("Div", x, small)),)


def small_tensor(net: Net) -> tuple[str, ...]:
    tiny = net.op("Tanh", net.op("Mul", _start(net), np.full(8, 1e-6, np.float32)))
    return (_linear(net, net.op("Mul", tiny, np.full(8, 1e6, np.float32))),)


KEPT = {
    cumulative: ("CumSum", "CumSum", "cumulative"),
    long_sum: ("ReduceSum", "ReduceSum", "sums up 1024 elements"),
    large_pool: ("GlobalAveragePool", "GlobalAveragePool", "its sum of 4096 elements reaches"),
    exponential: ("Exp", "Exp", "rounding x would show"),
    log_of_exponentials: ("ReduceLogSumExp", "ReduceLogSumExp", "its exponentials exceed FP16"),
    angles: ("Cast Mul Sin", "Sin", "positions of which no largest is declared"),
    index: ("Sigmoid Mul Floor Cast", "Mul", "reads positions or sizes"),
    positions: ("Cast Sub Mul", "Sub", "counts up to"),
    table: ("Add", "Add", "holds whole numbers up to 3007"),
    scales: ("Cast Mul Div", "Div", "Resize 'Resize_"),
    boxes: ("Transpose Mul", "Mul", "NonMaxSuppression 'NonMaxSuppression_"),
    small_divisor: ("Abs Add Mul Div", "Mul", "gets as small as"),
    small_tensor: ("Mul Tanh Mul", "Tanh", "loses its bits"),
}


def _built(build: Build, **options: object) -> Halved:
    net = Net()
    return halved(net, *build(net), **options)


@pytest.mark.parametrize("build", KEPT, ids=lambda b: b.__name__)
def test_stays_float32(build: Build) -> None:
    kept, op, reason = KEPT[build]
    found = _built(build)
    assert set(kept.split()) <= set(found.kept.split())
    assert len(found.plan.float_nodes) <= len(kept.split()) + 2, "a small island"
    by_name = {n.name: n.op for n in found.model.graph.nodes}
    reasons = [why for name, why in found.plan.float_nodes.items() if by_name[name] == op]
    assert any(reason in why for why in reasons), reasons
    assert found.error() < 1e-2


def layer_scale(net: Net) -> tuple[str, ...]:
    """ConvNeXt's branches begin at 1e-6: lost in the stream they are added to, in float32 too."""
    x = net.input("x", 4, 8)
    for _ in range(3):
        x = net.op("Add", x, net.op("Mul", _linear(net, x), np.full(8, 1e-6, np.float32)))
    return (_linear(net, x),)


def short_sum(net: Net) -> tuple[str, ...]:
    return (_linear(net, net.op("ReduceMean", _start(net), axes=[1]), 1),)


def negative_exponential(net: Net) -> tuple[str, ...]:
    return (_linear(net, net.op("Exp", net.op("Neg", net.op("Abs", _start(net))))),)


def few_angles(net: Net) -> tuple[str, ...]:
    return (_linear(net, net.op("Sin", net.op("Tanh", _start(net)))),)


def flags(net: Net) -> tuple[str, ...]:
    flag = net.op("Cast", net.input("i", 4, 8, dtype=np.int64), to=TensorProto.FLOAT)
    return (_linear(net, net.op("Add", flag, _start(net))),)


def factor(net: Net) -> tuple[str, ...]:
    """3001 is no whole number of half, but as a factor no more wrong than any other."""
    return (_linear(net, net.op("Div", _start(net), 3001.0)),)


def clip_without_end(net: Net) -> tuple[str, ...]:
    return (_linear(net, net.op("Clip", _start(net), 0.0, np.float32(3e38))),)


def guarded_norm(net: Net) -> tuple[str, ...]:
    """x / max(‖x‖, 1e-12)."""
    x = _start(net)
    return (_linear(net, net.op("Div", x, net.op("Clip", net.op("ReduceL2", x, axes=[1]), 1e-12))),)


def softmax_and_norm(net: Net) -> tuple[str, ...]:
    x = net.op("LayerNormalization", _start(net), net.positive(8), net.draw(8), epsilon=1e-12)
    return (_linear(net, net.op("Softmax", x)),)


HALF = (
    layer_scale,
    short_sum,
    negative_exponential,
    few_angles,
    flags,
    factor,
    clip_without_end,
    guarded_norm,
    softmax_and_norm,
)


@pytest.mark.parametrize("build", HALF, ids=lambda b: b.__name__)
def test_becomes_half(build: Build) -> None:
    found = _built(build)
    assert found.kept == ""
    assert found.error() < 1e-2


def test_a_divisor_keeps_its_guard() -> None:
    """A row of zeros: 0 / 1e-12 is 0, and 0 / 0 is not."""
    net = Net()
    (output,) = guarded_norm(net)
    proto = net.proto(output)
    random = np.random.default_rng(1)
    found = halved_proto(proto, samples=[{"x": random.standard_normal((4, 8)).astype(np.float32)}])
    assert [b.lowest for b in found.plan.rewrites.values()] == [2.0**-14]
    blank = {"x": np.float32(random.standard_normal((4, 8)) * [[1], [0], [1], [1]])}
    object.__setattr__(found, "samples", [blank])
    assert found.error() < 1e-2


def test_a_norm_that_gets_small_keeps_its_own_guard() -> None:
    net = Net()
    (output,) = guarded_norm(net)
    samples = [{"x": np.full((4, 8), 1e-5, np.float32)}]
    found = halved_proto(net.proto(output), samples=samples)
    assert not found.plan.rewrites
    assert {"ReduceL2", "Clip", "Div"} <= set(found.kept.split())
    assert found.error() < 1e-2


def test_the_margin() -> None:
    """10,000 measured may be 40,000 on other data, not 400,000."""
    net = Net()
    y = net.op("Mul", net.input("x", 4, 8), 1e4)
    samples = [{"x": np.ones((4, 8), np.float32)}]
    output = _linear(net, net.op("Tanh", y))
    for margin, kept in ((4.0, ""), (40.0, "Mul Tanh")):
        options = HalfOptions(margin=margin)
        assert halved(net, output, samples=samples, options=options).kept == kept


def test_bf16_has_the_range() -> None:
    net = Net()
    y = net.op("Mul", net.op("Mul", _start(net), 1e6), 1e-6)
    assert halved(net, _linear(net, y), kind="bf16").kept == ""


def test_half_scales_need_their_opset() -> None:
    net = Net(17)
    x = net.input("x", 4, 8)
    zero = net.store(0, "zero", np.int8)
    y = net.op("DequantizeLinear", net.op("QuantizeLinear", x, 0.1, zero), 0.1, zero)
    with pytest.raises(ModelError, match=r"opset 17 has no FP16 scales.*raise it to 19"):
        halved(net, _linear(net, y))
