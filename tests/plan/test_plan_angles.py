"""Layers whose results are angles of more than a turn stay float, unless the user names them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from building import Net, as_model
from onnx import TensorProto

from fusewright.plan.decide import Rules, decide
from fusewright.plan.plan import FLOAT, Group, Plan
from fusewright.plan.recognise import recognise

Build = Callable[[Net], str]
TURN = 2 * np.pi


def _weight(net: Net, *shape: int, size: float = 1.0, name: str = "w") -> str:
    """Of rows that make `size` of inputs of 1."""
    drawn = net.random.uniform(-1, 1, shape)
    axes = tuple(range(1, len(shape))) if len(shape) > 2 else (0,)
    lengths = np.sqrt((drawn**2).sum(axis=axes, keepdims=True))
    return net.store(size * drawn / lengths, name)


def fourier(net: Net) -> str:
    """Segment-Anything's prompt encoder."""
    place = net.op("MatMul", net.input("x", 4, 2), _weight(net, 2, 16, size=10))
    return _both(net, net.op("Mul", place, TURN))


def biased(net: Net) -> str:
    angle = net.op("MatMul", net.input("x", 4, 32), _weight(net, 32, 16, size=20))
    return _both(net, net.op("Add", angle, net.draw(16)))


def by_gemm(net: Net) -> str:
    weight = net.store(net.stored[_weight(net, 32, 16, size=20)].T)
    return _both(net, net.op("Gemm", net.input("x", 4, 32), weight, net.draw(16), transB=1))


def by_conv(net: Net) -> str:
    angle = net.op("Conv", net.input("x", 1, 16, 6, 6), _weight(net, 16, 16, 3, 3, size=20))
    return net.op("Sin", net.op("Reshape", angle, [4, 64]))


def divided(net: Net) -> str:
    angle = net.op("MatMul", net.input("x", 4, 32), _weight(net, 32, 16))
    return _both(net, net.op("Div", angle, 0.05))


def fractions(net: Net) -> str:
    place = net.op("MatMul", net.input("x", 4, 32), _weight(net, 32, 16, size=9))
    return net.op("Sub", place, net.op("Floor", place))


def remainders(net: Net) -> str:
    place = net.op("MatMul", net.input("x", 4, 32), _weight(net, 32, 16, size=90))
    return net.op("Mod", place, np.float32(TURN), fmod=1)


def phase(net: Net) -> str:
    """A vocoder's: steps of up to a turn, added up."""
    steps = net.op("Sigmoid", net.op("Conv", net.input("x", 1, 16, 64), _weight(net, 16, 16, 3)))
    return net.op("Sin", net.op("CumSum", net.op("Mul", steps, TURN), np.int64(2)))


def positions(net: Net) -> str:
    place = net.op("Cast", net.input("at", 4, 1, dtype=np.int64), to=TensorProto.FLOAT)
    return _both(net, net.op("MatMul", place, np.linspace(0.01, 1, 16, dtype=np.float32)[None]))


def a_table(net: Net) -> str:
    """Positions cut from a stored range."""
    length = net.op("Slice", net.op("Shape", net.input("x", "s", 4)), [0], [1], [0])
    place = net.op("Slice", np.arange(4096, dtype=np.float32)[:, None], [0], length, [0])
    return _both(net, net.op("MatMul", place, np.linspace(0.01, 1, 16, dtype=np.float32)[None]))


def _both(net: Net, angle: str) -> str:
    return net.op("Concat", net.op("Sin", angle), net.op("Cos", angle), axis=-1)


SPOILED = (
    fourier,
    biased,
    by_gemm,
    by_conv,
    divided,
    fractions,
    remainders,
    phase,
    positions,
    a_table,
)


def inner_layer(net: Net) -> str:
    """Of a SIREN: sin(30·(W·x + b)), a quarter of a turn for inputs of 1."""
    angle = net.op("MatMul", net.input("x", 4, 32), _weight(net, 32, 16, size=1.4 / 30))
    return net.op("Sin", net.op("Mul", net.op("Add", angle, net.draw(16)), 30.0))


def box_angle(net: Net) -> str:
    """A rotated box: π·σ(x)."""
    share = net.op("Sigmoid", net.op("MatMul", net.input("x", 4, 32), _weight(net, 32, 16)))
    return _both(net, net.op("Mul", share, np.pi))


def snake(net: Net) -> str:
    """x + sin²(αx)/α."""
    x = net.op("MatMul", net.input("x", 4, 32), _weight(net, 32, 16))
    rate = np.linspace(1, 50, 16, dtype=np.float32)
    wave = net.op("Sin", net.op("Mul", x, rate))
    return net.op("Add", x, net.op("Mul", net.op("Pow", wave, 2.0), 1 / rate))


def behind_a_norm(net: Net) -> str:
    """The layer in front of a norm makes no angles, whatever is behind it."""
    x = net.op("MatMul", net.input("x", 4, 32), _weight(net, 32, 32, size=90))
    x = net.op("LayerNormalization", x, net.positive(32), net.draw(32))
    return net.op("Sin", x)


UNHARMED = (inner_layer, box_angle, snake, behind_a_norm)


def _decided(build: Build, **rules: object) -> list[Group]:
    net = Net(19)
    output = build(net)
    plan, _ = recognise(as_model(net.proto(output), clean=True))
    decide(plan, Rules(**rules))
    return _layers(plan)


def _layers(plan: Plan) -> list[Group]:
    return [group for group in plan.groups if group.spec.weights]


@pytest.mark.parametrize("quantized", ["int8", "fp8"])
@pytest.mark.parametrize("build", SPOILED, ids=lambda b: b.__name__)
def test_angles_stay_float(build: Build, quantized: str) -> None:
    (group,) = _decided(build, quantized=quantized)
    assert group.decision == FLOAT
    function = {fractions: "Sub", remainders: "Mod"}.get(build, "Sin")
    assert f"{function} '" in group.reason or "Cos '" in group.reason, group.reason


@pytest.mark.parametrize("build", UNHARMED, ids=lambda b: b.__name__)
def test_others_are_quantized(build: Build) -> None:
    (group,) = _decided(build)
    assert group.decision == "int8", group.reason


def test_what_makes_the_operands_of_many_turns() -> None:
    """Its own error is a share of the value too; a norm between the two ends that."""

    def two(net: Net, between: str) -> str:
        x = net.op("MatMul", net.input("x", 4, 32), _weight(net, 32, 32))
        if between == "Relu":
            x = net.op("Relu", x)
        else:
            x = net.op(between, x, net.positive(32), net.draw(32))
        return net.op("Sin", net.op("MatMul", x, _weight(net, 32, 16, size=60)))

    for between, expected in (("Relu", [FLOAT, FLOAT]), ("LayerNormalization", ["int8", FLOAT])):
        groups = _decided(lambda net, op=between: two(net, op))
        assert [group.decision for group in groups] == expected


@pytest.mark.parametrize(
    "rules", [{"include": ("op:MatMul",)}, {"group_precision": ("op:MatMul=int8",)}]
)
def test_the_user_may_have_it_otherwise(rules: dict[str, tuple[str, ...]]) -> None:
    (group,) = _decided(fourier, **rules)
    assert group.decision == "int8" and group.asked
