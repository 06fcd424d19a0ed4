"""Clip pairs, HardSigmoid and HardSwish chains."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from building import Net, ops
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule, rewrite

from fusewright.graph.model import Model
from fusewright.groups.activations import act
from fusewright.match.matcher import Match, Matcher
from fusewright.match.pattern import var


def _x(net: Net, dtype: type = np.float32) -> str:
    return net.input("x", "n", 4, 8, 8, dtype=dtype)


def _ordered(net: Net, op: str, a: object, b: object, swap: bool) -> str:
    return net.op(op, b, a) if swap else net.op(op, a, b)


def _relu6(net: Net, x: str, spelling: str = "clip", low: float = 0.0, high: float = 6.0) -> str:
    if spelling == "clip":
        return net.op("Clip", x, low, high)
    if spelling == "relu":
        return net.op("Min", net.op("Relu", x), high)
    if spelling == "max, min":
        return net.op("Min", net.op("Max", low, x), high)
    return net.op("Max", net.op("Min", x, high), low)


def _sixth(net: Net, y: str, factor: float | None, swap: bool = False) -> str:
    """y/6, or y·factor."""
    return net.op("Div", y, 6.0) if factor is None else _ordered(net, "Mul", y, factor, swap)


def _gate(net: Net, x: str, factor: float | None = None, shift: float = 3.0, **relu6) -> str:
    return _sixth(net, _relu6(net, net.op("Add", x, shift), **relu6), factor)


# relu6(x + 3), then in which order x and the sixth come to it.
def _swish(shape: str, swaps: tuple[bool, bool, bool], factor: float | None, **relu6):
    def build(net: Net) -> str:
        x = _x(net)
        inner = _relu6(net, _ordered(net, "Add", x, 3.0, swaps[0]), **relu6)
        if shape == "(x·r)/6":
            return _sixth(net, _ordered(net, "Mul", x, inner, swaps[1]), factor, swaps[2])
        if shape == "x·(r/6)":
            return _ordered(net, "Mul", x, _sixth(net, inner, factor, swaps[2]), swaps[1])
        return _ordered(net, "Mul", _sixth(net, x, factor, swaps[2]), inner, swaps[1])

    return build


_SWAPS = tuple(product((False, True), repeat=3))
HARD_SWISH = {
    f"{shape} by {'Div' if factor is None else factor} {''.join('ns'[s] for s in swaps)}": Row(
        _swish(shape, swaps, factor), "HardSwish"
    )
    for shape in ("x·(r/6)",)
    for factor in (None, 1 / 6, 0.166667)
    for swaps in _SWAPS
    if factor is not None or not swaps[2]
}
HARD_SWISH |= {
    f"relu6 as {spelling}": Row(_swish("x·(r/6)", _SWAPS[0], None, spelling=spelling), "HardSwish")
    for spelling in ("relu", "max, min", "min, max")
}
# Another form of these would round differently: they stay, and are an Act as they are.
CHAINS = {
    f"{shape} by {'Div' if factor is None else factor} {''.join('ns'[s] for s in swaps)}": Row(
        _swish(shape, swaps, factor), "Add Clip Mul Div" if factor is None else "Add Clip Mul Mul"
    )
    for shape in ("(x·r)/6", "(x/6)·r")
    for factor in (None, 1 / 6, 0.166667)
    for swaps in _SWAPS
    if factor is not None or not swaps[2]
}
NO_CHAINS = {
    "a fifth": _swish("(x·r)/6", _SWAPS[0], 0.2),
    "0.1667": _swish("(x/6)·r", _SWAPS[0], 0.1667),
    "shift 2.9": lambda n: n.op("Div", n.op("Mul", _x(n), _gate(n, "x", 1.0, shift=2.9)), 6.0),
    "clip to 5": _swish("(x·r)/6", _SWAPS[0], None, high=5.0),
    "clip from 0.5": _swish("(x·r)/6", _SWAPS[0], None, low=0.5),
    "gate of something else": lambda n: n.op(
        "Div", n.op("Mul", _x(n), _relu6(n, n.op("Add", n.input("z", "n", 4, 8, 8), 3.0))), 6.0
    ),
}
HARD_SWISH |= {
    "x·HardSigmoid(x)": Row(
        lambda n: n.op("Mul", _x(n), n.op("HardSigmoid", "x", alpha=1 / 6)), "HardSwish"
    ),
    "HardSigmoid(x)·x": Row(
        lambda n: n.op("Mul", n.op("HardSigmoid", _x(n), alpha=1 / 6, beta=0.5), "x"), "HardSwish"
    ),
    "alpha with six digits": Row(
        lambda n: n.op("Mul", _x(n), n.op("HardSigmoid", "x", alpha=0.166667)), "HardSwish"
    ),
    # The operator exists from opset 14 on.
    "opset 13": Row(_swish("x·(r/6)", _SWAPS[0], None), "HardSigmoid Mul", opset=13),
    "opset 9, with Clip's attributes": Row(
        lambda n: n.op(
            "Mul",
            _x(n),
            n.op("Div", n.op("Clip", n.op("Add", "x", 3.0), min=0.0, max=6.0), 6.0),
        ),
        "HardSigmoid Mul",
        opset=9,
    ),
}

HARD_SIGMOID = {
    "relu6(x+3)/6": Row(lambda n: _gate(n, _x(n)), "HardSigmoid"),
    "relu6(x+3)·(1/6)": Row(lambda n: _gate(n, _x(n), factor=1 / 6), "HardSigmoid"),
    "relu6(x+3)·0.166667": Row(lambda n: _gate(n, _x(n), factor=0.166667), "HardSigmoid"),
    "clip(x/5 + ½, 0, 1)": Row(
        lambda n: n.op("Clip", n.op("Add", n.op("Mul", _x(n), 0.2), 0.5), 0.0, 1.0), "HardSigmoid"
    ),
    "clip(½ + x/5, 0, 1)": Row(
        lambda n: n.op("Clip", n.op("Add", 0.5, n.op("Mul", 0.2, _x(n))), 0.0, 1.0), "HardSigmoid"
    ),
    "min(max(x/5 + ½, 0), 1)": Row(
        lambda n: n.op("Min", n.op("Max", n.op("Add", n.op("Mul", _x(n), 0.2), 0.5), 0.0), 1.0),
        "HardSigmoid",
    ),
    "clip(x + ½, 0, 1)": Row(
        lambda n: n.op("Clip", n.op("Add", _x(n), 0.5), 0.0, 1.0), "HardSigmoid"
    ),
    # The Add is not the convolution's bias: activations are rewritten before folding.
    "behind a conv": Row(lambda n: _gate(n, n.conv(_x(n), 6, 4)), "Conv HardSigmoid"),
    # Clip(x·s + b, 0, 1) with one s per channel is HardSigmoid(x·s), slope 1.
    "slope per channel": Row(
        lambda n: n.op("Clip", n.op("Add", n.op("Mul", _x(n), n.positive(4, 1, 1)), 0.5), 0.0, 1.0),
        "Mul HardSigmoid",
    ),
}


CLIP = {
    "min(max(x, a), b)": Row(lambda n: n.op("Min", n.op("Max", _x(n), -1.0), 2.0), "Clip"),
    "min(b, max(a, x))": Row(lambda n: n.op("Min", 2.0, n.op("Max", -1.0, _x(n))), "Clip"),
    "max(min(x, b), a)": Row(lambda n: n.op("Max", n.op("Min", _x(n), 2.0), -1.0), "Clip"),
    "max(a, min(b, x))": Row(lambda n: n.op("Max", -1.0, n.op("Min", 2.0, _x(n))), "Clip"),
    "min(relu(x), b)": Row(lambda n: n.op("Min", n.op("Relu", _x(n)), 6.0), "Clip"),
    "bounds of rank 1": Row(lambda n: n.op("Min", n.op("Max", _x(n), [-1.0]), [2.0]), "Clip"),
    "equal bounds": Row(
        lambda n: n.op("Add", n.op("Min", n.op("Max", _x(n), 1.0), 1.0), "x"), "Clip Add"
    ),
    "float64": Row(
        lambda n: n.op("Min", n.op("Max", _x(n, np.float64), np.float64(-1)), np.float64(2)),
        "Clip",
    ),
    "int64": Row(
        lambda n: n.op("Min", n.op("Max", _x(n, np.int64), np.int64(-1)), np.int64(2)), "Clip"
    ),
}

RELU = {
    "max(x, 0)": Row(lambda n: n.op("Max", _x(n), 0.0), "Relu"),
    "max(0, x)": Row(lambda n: n.op("Max", [0.0], _x(n)), "Relu"),
    "Clip from 0, no maximum": Row(lambda n: n.op("Clip", _x(n), 0.0), "Relu"),
    "Clip from 0, maximum omitted by name": Row(lambda n: n.op("Clip", _x(n), 0.0, None), "Relu"),
    "Clip from 0 to infinity": Row(lambda n: n.op("Clip", _x(n), 0.0, np.inf), "Relu"),
    # What the converter makes of an attribute that was left at its default.
    "Clip from 0, opset 9": Row(lambda n: n.op("Clip", _x(n), min=0.0), "Relu", opset=9),
    "min(max(x, 0), ∞)": Row(lambda n: n.op("Min", n.op("Max", _x(n), 0.0), np.inf), "Relu"),
    "Clip from 0, then a minimum": Row(
        lambda n: n.op("Min", n.op("Clip", _x(n), 0.0), 6.0), "Clip"
    ),
}

STAYS = {
    "Clip with attributes": Row(lambda n: n.op("Clip", _x(n), min=-1.0, max=2.0), "Clip", opset=9),
    "Clip with bounds": Row(lambda n: n.op("Clip", _x(n), 0.0, 6.0), "Clip"),
    "Clip without a minimum": Row(lambda n: n.op("Clip", _x(n), None, 6.0), "Clip"),
    "Max of two": Row(lambda n: n.op("Max", _x(n), n.op("Neg", "x")), "Neg Max"),
    "SiLU": Row(lambda n: n.op("Mul", n.op("Sigmoid", _x(n)), "x"), "Sigmoid Mul"),
}

NO_CLIP = {
    "lower above upper": Row(
        lambda n: n.op("Min", n.op("Max", _x(n), 3.0), 2.0), "minimum of 3 above the maximum of 2"
    ),
    "upper below lower, the other order": Row(
        lambda n: n.op("Max", n.op("Min", _x(n), 2.0), 3.0), "minimum of 3 above the maximum of 2"
    ),
    "Relu below a negative bound": Row(
        lambda n: n.op("Min", n.op("Relu", _x(n)), -1.0), "minimum of 0 above the maximum of -1"
    ),
    "bound per channel": Row(
        lambda n: n.op("Min", n.op("Max", _x(n), n.draw(4, 1, 1)), 2.0), "one-element constant"
    ),
    "computed bound": Row(
        lambda n: n.op("Min", n.op("Max", _x(n), n.input("low", 1)), 2.0), "one-element constant"
    ),
    "three operands": Row(
        lambda n: n.op("Min", n.op("Max", _x(n), -1.0, -2.0), 2.0), "expected 2 inputs"
    ),
    "inner value used twice": Row(
        lambda n: (n.op("Min", n.op("Max", _x(n), -1.0, name="max"), 2.0), n.op("Neg", "max_y")),
        "used elsewhere",
    ),
    "inner value is an output": Row(
        lambda n: (n.op("Max", n.op("Min", _x(n), 2.0, name="min"), -1.0), "min_y"),
        "used elsewhere",
    ),
    # Relu of integers exists in no runtime of opset 13.
    "integers": Row(lambda n: n.op("Max", _x(n, np.int64), np.int64(0)), "type int64"),
    "a bound that enlarges the rank": Row(
        lambda n: n.op("Min", n.op("Max", n.input("x", 3, 5), [[[[-1.0]]]]), 2.0), "rank"
    ),
}

NO_RELU = {
    "an upper bound": Row(lambda n: n.op("Clip", _x(n), 0.0, 6.0), "upper bound"),
    "a computed upper bound": Row(
        lambda n: n.op("Clip", _x(n), 0.0, n.op("Exp", n.input("high"))), "stored tensor"
    ),
    "another lower bound": Row(lambda n: n.op("Clip", _x(n), -0.1), "expected the constant 0"),
    "integers": Row(lambda n: n.op("Clip", _x(n, np.int64), np.int64(0)), "type int64"),
}

NO_HARD_SIGMOID = {
    "a fifth": Row(lambda n: _gate(n, _x(n), factor=0.2), "a factor of 0.2 where 1/6 is exact"),
    "shift 2.9": Row(lambda n: _gate(n, _x(n), shift=2.9), "expected the constant 3"),
    "clip to 5": Row(lambda n: _gate(n, _x(n), high=5.0), "expected the constant 6"),
    "line clipped to 6": Row(
        lambda n: n.op("Clip", n.op("Add", n.op("Mul", _x(n), 0.2), 0.5), 0.0, 6.0),
        "expected the constant 1",
    ),
    "line clipped to 1.0001": Row(
        lambda n: n.op("Clip", n.op("Add", n.op("Mul", _x(n), 0.2), 0.5), 0.0, 1.00009),
        "expected the constant 1",
    ),
    "bias per channel": Row(
        lambda n: n.op("Clip", n.op("Add", n.op("Mul", _x(n), 0.2), n.positive(4, 1, 1)), 0.0, 1.0),
        "one-element constant 'beta'",
    ),
    "six over relu6": Row(
        lambda n: n.op("Div", 6.0, _relu6(n, n.op("Add", n.op("Abs", _x(n)), 3.0))),
        "expected Clip, found the constant",
    ),
    "integers": Row(
        lambda n: n.op("Clip", n.op("Add", _x(n, np.int64), np.int64(1)), np.int64(0), np.int64(1)),
        "type int64",
    ),
}
_NEAR_MISSES = {
    "ClipPair": NO_CLIP,
    "ClipToRelu": NO_RELU,
    "HardSigmoidChain": NO_HARD_SIGMOID,
}


@pytest.mark.parametrize("row", HARD_SWISH.values(), ids=list(HARD_SWISH))
def test_hard_swish(row: Row) -> None:
    assert_rewritten(row)


def _acts(model: Model) -> list[Match]:
    matcher = Matcher("act", act(var("x")), model.opset, model.graph.outputs)
    return [match for node in model.graph.nodes for match in matcher.all_at(node)]


@pytest.mark.parametrize("row", CHAINS.values(), ids=list(CHAINS))
def test_hard_swish_chain_is_an_act(row: Row) -> None:
    model, _ = rewrite(row.proto())
    assert sorted(ops(model).split()) == sorted(row.expected.split())
    assert any(len(match.nodes) == 4 for match in _acts(model))


@pytest.mark.parametrize("build", NO_CHAINS.values(), ids=list(NO_CHAINS))
def test_no_hard_swish_chain(build: Callable[[Net], str]) -> None:
    model, _ = rewrite(Row(build, "").proto())
    assert not any(len(match.nodes) >= 4 for match in _acts(model))


@pytest.mark.parametrize("row", HARD_SIGMOID.values(), ids=list(HARD_SIGMOID))
def test_hard_sigmoid(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize("row", (CLIP | RELU).values(), ids=[*CLIP, *RELU])
def test_clip_and_relu(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize("row", STAYS.values(), ids=list(STAYS))
def test_normal_forms_stay(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize(
    ("rule", "row"),
    by_rule(_NEAR_MISSES),
)
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)


def test_another_hard_sigmoid_is_no_hard_swish() -> None:
    # The operator's own default slope is 0.2.
    row = Row(lambda n: n.op("Mul", _x(n), n.op("HardSigmoid", "x")), "alpha = another value")
    assert_left_alone("HardSwish", row)


def test_opset_13_has_no_hard_swish() -> None:
    row = Row(
        lambda n: n.op("Mul", _x(n), n.op("HardSigmoid", "x", alpha=1 / 6)), "needs opset 14", 13
    )
    assert_left_alone("HardSwish", row)
