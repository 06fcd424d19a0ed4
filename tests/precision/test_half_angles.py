"""What makes the argument of an ill-conditioned function is judged by the error it makes there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from building import Net, as_model, run
from halving import Feed, halved
from onnx import TensorProto

from fusewright.graph.convert import to_proto
from fusewright.precision import HalfOptions, apply_half, measure, plan_half
from fusewright.precision.twin import rounding_twin

Build = Callable[[Net], str]
# Relative error of the worst output: 46 dB is 5e-3.
RIGHT = 5e-3


def _waves(net: Net, angle: str) -> str:
    return net.op("Concat", net.op("Sin", angle), net.op("Cos", angle), axis=-1)


def _features(net: Net, *shape: int) -> str:
    return net.input("x", *(shape or (4, 8)))


def by_matmul(net: Net) -> str:
    return _waves(net, net.op("MatMul", _features(net), np.float32(20) * _drawn(net, 8, 6)))


def by_a_wide_matmul(net: Net) -> str:
    """32 products make an element: that is no pointwise operator in disguise."""
    return _waves(net, net.op("MatMul", _features(net, 4, 32), 20 * _drawn(net, 32, 6)))


def by_gemm(net: Net) -> str:
    bias = net.store(np.linspace(-90, 90, 6))
    return _waves(net, net.op("Gemm", _features(net), 9 * _drawn(net, 6, 8), bias, transB=1))


def by_einsum(net: Net) -> str:
    angle = net.op("Einsum", _features(net), 20 * _drawn(net, 6, 8), equation="nk,dk->nd")
    return _waves(net, angle)


def by_conv(net: Net) -> str:
    angle = net.op("Conv", net.input("x", 1, 4, 6, 6), 5 * _drawn(net, 6, 4, 3, 3))
    return _waves(net, angle)


def by_a_sum(net: Net) -> str:
    products = net.op("Mul", _features(net, 4, 1, 8), 20 * _drawn(net, 1, 6, 8))
    return _waves(net, net.op("ReduceSum", products, [-1], keepdims=0))


def by_a_sum_up(net: Net) -> str:
    """The phase of a vocoder: what is added up at every step."""
    steps = net.op("Mul", net.op("Sigmoid", _features(net, 2, 64)), 2 * np.pi)
    return _waves(net, net.op("CumSum", steps, np.int64(1)))


def within_a_turn(net: Net) -> str:
    angle = net.op("MatMul", _features(net), 200 * _drawn(net, 8, 6))
    return _waves(net, net.op("Mod", angle, 2 * np.pi, fmod=1))


def fractions(net: Net) -> str:
    place = net.op("MatMul", _features(net), 100 * _drawn(net, 8, 6))
    return net.op("Mul", net.op("Sub", place, net.op("Floor", place)), net.positive(6))


def scattered(net: Net) -> str:
    angle = net.op("MatMul", _features(net), 50 * _drawn(net, 8, 6))
    some = net.store([[0], [2]], "rows", np.int64)
    return _waves(net, net.op("ScatterND", angle, some, 100 * _drawn(net, 2, 6)))


def cosines(net: Net) -> str:
    """acos of what is near 1: the angle between a vector and one like it."""
    x = _features(net)
    norm = net.op("Sqrt", net.op("ReduceSum", net.op("Mul", x, x), [1]))
    unit = net.op("Div", x, norm)
    cosine = net.op("MatMul", unit, net.op("Transpose", unit, perm=[1, 0]))
    return net.op("Acos", net.op("Clip", cosine, -0.9999, 0.9999))


def exponents(net: Net) -> str:
    exponent = net.op("MatMul", _features(net), 30 * _drawn(net, 8, 6))
    return net.op("Mul", net.op("Exp", net.op("Clip", exponent, -5.0, 60.0)), 1e-24)


def powers(net: Net) -> str:
    share = net.op("Sigmoid", net.op("MatMul", _features(net), _drawn(net, 8, 6)))
    return net.op("Pow", share, 60.0)


def log_odds(net: Net) -> str:
    share = net.op("Sigmoid", net.op("Mul", net.op("Tanh", _features(net)), 9.0))
    rest = net.op("Sub", 1.00001, share)
    return net.op("Log", net.op("Div", share, rest))


def variance(net: Net) -> str:
    """E[x²] − E[x]² of what has a mean: its square is a thousand times as large."""
    x = net.op("Add", net.op("MatMul", _features(net), _drawn(net, 8, 6)), 50.0)
    mean, square = (
        net.op("Mul", net.op("ReduceSum", y, [1]), 1 / 6) for y in (x, net.op("Mul", x, x))
    )
    spread = net.op("Sub", square, net.op("Mul", mean, mean))
    return net.op("Div", net.op("Sub", x, mean), net.op("Sqrt", net.op("Add", spread, 0.01)))


def two_of_one_offset(net: Net) -> str:
    x = _features(net)
    first, second = (net.op("Add", net.op("MatMul", x, _drawn(net, 8, 6)), 200.0) for _ in range(2))
    return net.op("Sub", first, second)


def _drawn(net: Net, *shape: int) -> np.ndarray:
    return (net.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


MAGNIFIED = (
    by_matmul,
    by_a_wide_matmul,
    by_gemm,
    by_einsum,
    by_conv,
    by_a_sum,
    by_a_sum_up,
    within_a_turn,
    fractions,
    scattered,
    cosines,
    exponents,
    powers,
    log_odds,
    variance,
    two_of_one_offset,
)


@pytest.mark.parametrize("build", MAGNIFIED, ids=lambda b: b.__name__)
def test_the_result_is_right(build: Build) -> None:
    net = Net()
    found = halved(net, net.op("Relu", net.op("Mul", build(net), 1.5)))
    assert found.error() < RIGHT, found.plan.lines()


@pytest.mark.parametrize("build", MAGNIFIED, ids=lambda b: b.__name__)
def test_in_bf16(build: Build) -> None:
    net = Net(22)
    found = halved(net, net.op("Relu", net.op("Mul", build(net), 1.5)), kind="bf16")
    assert found.error() < 2e-2, found.plan.lines()


def implicit_network(net: Net) -> str:
    """sin(30·(W·x + b)): of the second layer only what is within the Sin's reach is float32."""
    x = net.op("Tanh", net.input("x", 16, 2))
    for width, largest in ((2, 0.5), (32, (6 / 32) ** 0.5 / 30)):
        weight = net.store(net.random.uniform(-largest, largest, (width, 32)), "w")
        bias = net.store(net.random.uniform(-0.1, 0.1, 32), "b")
        x = net.op("Sin", net.op("Mul", net.op("Add", net.op("MatMul", x, weight), bias), 30.0))
    return net.op("MatMul", x, net.draw(32, 32))


def snake(net: Net) -> str:
    """x + sin²(αx)/α, of vocoders: as wrong as x."""
    x = net.op("MatMul", net.input("x", 4, 32), net.draw(32, 32))
    wave = net.op("Sin", net.op("Mul", x, 4.0))
    x = net.op("Add", x, net.op("Mul", net.op("Mul", wave, wave), 0.25))
    return net.op("MatMul", x, net.draw(32, 32))


def decoded_boxes(net: Net) -> str:
    """e^x of a head, up to e^3, times an anchor."""
    size = net.op("MatMul", net.input("x", 4, 32), 0.3 * _drawn(net, 32, 32))
    return net.op("Mul", net.op("Exp", net.op("Clip", size, -4.0, 3.0)), net.positive(32))


HEAVY_STAYS_HALF = {implicit_network: 2, snake: 2, decoded_boxes: 1}


@pytest.mark.parametrize("build", HEAVY_STAYS_HALF, ids=lambda b: b.__name__)
def test_no_more_than_has_to(build: Build) -> None:
    net = Net()
    found = halved(net, build(net))
    half = [n for n in found.model.graph.nodes if n.name in found.plan.half_nodes]
    assert sum(n.op == "MatMul" for n in half) == HEAVY_STAYS_HALF[build]
    assert found.error() < RIGHT


def fed_positions(net: Net) -> str:
    """Rotary positions, the angles by an outer product."""
    net.input("at", 1, "s", dtype=np.int64)
    place = net.op("Cast", net.op("Unsqueeze", "at", [2]), to=TensorProto.FLOAT)
    return _waves(net, net.op("MatMul", place, _frequencies(net)))


def counted(net: Net) -> str:
    """Positions counted off the length of the sequence."""
    length = net.op("Gather", net.op("Shape", net.input("x", 1, "s", 12)), np.int64(1))
    steps = net.op("Cast", net.op("Range", np.int64(0), length, np.int64(1)), to=1)
    return net.op("Add", "x", _waves(net, net.op("Mul", net.op("Unsqueeze", steps, [1]), _rates())))


def cut_from_a_table(net: Net) -> str:
    length = net.op("Slice", net.op("Shape", net.input("x", 1, "s", 12)), [1], [2], [0])
    table = net.store(np.arange(4096)[:, None] * _rates(), "angles")
    return net.op("Add", "x", _waves(net, net.op("Slice", table, [0], length, [0])))


def tokens_counted(net: Net) -> str:
    """The positions of tokens that are not padding."""
    net.input("mask", 1, "s", dtype=np.int64)
    place = net.op("Cast", net.op("CumSum", "mask", np.int64(1)), to=TensorProto.FLOAT)
    return _waves(net, net.op("Mul", net.op("Unsqueeze", place, [2]), _rates()))


def _rates() -> np.ndarray:
    return (1 / 10000 ** (np.arange(6) / 6)).astype(np.float32)[None]


def _frequencies(net: Net) -> str:
    return net.store(_rates(), "frequencies")


POSITIONS = (fed_positions, counted, cut_from_a_table, tokens_counted)


def _of_length(net: Net, length: int, seed: int) -> Feed:
    random = np.random.default_rng(seed)
    made = {
        "x": random.standard_normal((1, length, 12)).astype(np.float32),
        "at": np.arange(length)[None],
        "mask": np.ones((1, length), np.int64),
    }
    return {value.name: made[value.name] for value in net.inputs}


def _far(net: Net, output: str, calibrated: Sequence[Feed], feed: Feed, **sizes: int) -> float:
    """Relative error at positions that were not measured."""
    before = net.proto(output)
    model = as_model(before)
    ranges = measure(model.graph, calibrated, "fp16")
    apply_half(model.graph, plan_half(model.graph, ranges, "fp16", HalfOptions(sizes=sizes)))
    (old,), (new,) = run(before, feed), run(rounding_twin(to_proto(model.graph)), feed)
    return float(np.linalg.norm(old - new) / np.linalg.norm(old))


@pytest.mark.parametrize("build", POSITIONS, ids=lambda b: b.__name__)
def test_short_samples_show_no_long_positions(build: Build) -> None:
    net = Net()
    output = net.op("Relu", net.op("Mul", build(net), 1.5))
    short, long = _of_length(net, 6, 0), _of_length(net, 3000, 1)
    assert _far(net, output, [short], long) < RIGHT


def test_a_declared_length_is_enough() -> None:
    """Up to 8 positions nothing has to be float32; up to 3,000 it has."""
    net = Net()
    output = net.op("Relu", net.op("Mul", counted(net), 1.5))
    model = as_model(net.proto(output))
    ranges = measure(model.graph, [_of_length(net, 6, 0)], "fp16")
    sines = {n.name for n in model.graph.nodes if n.op == "Sin"}
    for length, stays in ((8, False), (3000, True)):
        plan = plan_half(model.graph, ranges, "fp16", HalfOptions(sizes={"s": length}))
        assert bool(sines & set(plan.float_nodes)) == stays


def test_flags_do_not_count() -> None:
    """A mask of 0 and 1 is whole numbers too; it is as large as it was measured."""
    net = Net()
    net.input("mask", 4, 8, dtype=np.int64)
    flags = net.op("Cast", "mask", to=TensorProto.FLOAT)
    scores = net.op("MatMul", net.op("Mul", net.input("x", 4, 8), flags), net.draw(8, 8))
    random = np.random.default_rng(2)
    samples = [
        {"mask": np.eye(4, 8, dtype=np.int64), "x": random.standard_normal((4, 8)).astype("f4")}
    ]
    assert halved(net, net.op("Softmax", scores), samples=samples).kept == ""
