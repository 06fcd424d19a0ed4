"""GELU: every order and both approximations, to the operator or to one chain."""

from __future__ import annotations

from itertools import product
from math import pi

import numpy as np
import pytest
from building import Net, feeds, run
from norms import Build
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule, rewrite

from fusewright.graph.convert import to_proto
from fusewright.graph.model import Model
from fusewright.groups.activations import act
from fusewright.match.matcher import Matcher
from fusewright.match.pattern import var

ROOT, CUBIC = (2.0 / pi) ** 0.5, 0.044715
ERF_CHAIN = {"Div": "Div Erf Add Mul Mul", "Mul": "Mul Erf Add Mul Mul"}
TANH_CHAIN = "Pow Mul Add Mul Tanh Add Mul Mul"


def _x(net: Net, dtype: type = np.float32) -> str:
    return net.input("x", "n", 5, 6, dtype=dtype)


def _gated(net: Net, x: str, inner: str, order: str, swap: bool = False, half: float = 0.5) -> str:
    """x·½·(1 + inner)."""

    def op(name: str, a: object, b: object) -> str:
        return net.op(name, b, a) if swap and name != "Div" else net.op(name, a, b)

    if order == "x·(½·inner + ½)":
        return op("Mul", x, op("Add", op("Mul", inner, half), half))
    gate = op("Add", inner, 1.0)
    if order == "(x·½)·gate":
        return op("Mul", op("Mul", x, half), gate)
    if order == "(x/2)·gate":
        return op("Mul", op("Div", x, 1 / half), gate)
    if order == "x·(gate·½)":
        return op("Mul", x, op("Mul", gate, half))
    if order == "x·(gate/2)":
        return op("Mul", x, op("Div", gate, 1 / half))
    product_ = op("Mul", x, gate)
    return op("Div", product_, 1 / half) if order == "(x·gate)/2" else op("Mul", product_, half)


ORDERS = (
    "(x·½)·gate",
    "(x/2)·gate",
    "x·(gate·½)",
    "x·(gate/2)",
    "x·(½·inner + ½)",
    "(x·gate)·½",
    "(x·gate)/2",
)


def _erf(order: str = ORDERS[0], by: str = "Div", constant: float | None = None, **options):
    def build(net: Net) -> str:
        x = _x(net)
        value = constant or (2.0**0.5 if by == "Div" else 0.5**0.5)
        return _gated(net, x, net.op("Erf", net.op(by, x, value)), order, **options)

    return build


def _argument(net: Net, x: str, form: str, root: float, cubic: float) -> str:
    """√(2/π)·(x + 0.044715·x³)."""
    if form == "x·c·(1 + 0.04·x·x)":
        bracket = net.op("Add", 1.0, net.op("Mul", net.op("Mul", x, cubic), x))
        return net.op("Mul", net.op("Mul", x, root), bracket)
    if form == "x·(c·(1 + 0.04·x²))":
        bracket = net.op("Add", net.op("Mul", net.op("Pow", x, 2.0), cubic), 1.0)
        return net.op("Mul", x, net.op("Mul", root, bracket))
    if form == "Pow":
        cube = net.op("Mul", net.op("Pow", x, 3.0), cubic)
    elif form == "x·x·x":
        cube = net.op("Mul", cubic, net.op("Mul", net.op("Mul", x, x), x))
    elif form == "0.04·x·x·x":
        cube = net.op("Mul", net.op("Mul", net.op("Mul", cubic, x), x), x)
    else:
        cube = net.op("Mul", x, net.op("Mul", x, net.op("Mul", x, cubic)))
    return net.op("Mul", net.op("Add", x, cube), root)


FORMS = (
    "Pow",
    "x·x·x",
    "0.04·x·x·x",
    "x·(x·(x·0.04))",
    "x·c·(1 + 0.04·x·x)",
    "x·(c·(1 + 0.04·x²))",
)


def _tanh(order: str = ORDERS[0], form: str = "Pow", root=ROOT, cubic=CUBIC, **options):
    def build(net: Net) -> str:
        x = _x(net)
        inner = net.op("Tanh", _argument(net, x, form, root, cubic))
        return _gated(net, x, inner, order, **options)

    return build


ERF = {
    f"{order}, {by}{', swapped' * swap}": (_erf(order, by, swap=swap), ERF_CHAIN[by])
    for order, by, swap in product(ORDERS, ("Div", "Mul"), (False, True))
}
# tf2onnx, and six digits.
ERF |= {f"x·{c}": (_erf(by="Mul", constant=c), ERF_CHAIN["Mul"]) for c in (0.7071067, 0.707107)}
ERF |= {"x/1.41421": (_erf(constant=1.41421), ERF_CHAIN["Div"])}
TANH = {
    f"{order}, {form}{', swapped' * swap}": (_tanh(order, form, swap=swap), TANH_CHAIN)
    for order, form, swap in product(ORDERS, FORMS, (False, True))
}
TANH |= {f"√(2/π) as {c}": (_tanh(root=c), TANH_CHAIN) for c in (0.797884, 0.79788, 0.7978845608)}
SPELLINGS = ERF | TANH


def _leaking(net: Net) -> tuple[str, str]:
    x = _x(net)
    inner = net.op("Erf", net.op("Div", x, 2.0**0.5), name="erf")
    return _gated(net, x, inner, ORDERS[0]), net.op("Neg", "erf_y")


def _of_two(net: Net) -> str:
    inner = net.op("Erf", net.op("Div", net.input("z", "n", 5, 6), 2.0**0.5))
    return _gated(net, _x(net), inner, ORDERS[0])


NO_ERF = {
    "x/1.5": Row(_erf(constant=1.5), "the constant 1.41421, found 1.5"),
    "x·0.7": Row(_erf(by="Mul", constant=0.7), "the constant 0.707107, found 0.7"),
    "x/√½": Row(_erf(constant=0.5**0.5), "the constant 1.41421, found 0.707107"),
    "a third": Row(_erf(half=0.3), "expected"),
    "of two tensors": Row(_of_two, "'x' again, found 'z'"),
    "read elsewhere": Row(_leaking, "'erf_y' used elsewhere"),
    "a constant of four digits": Row(_erf(constant=1.4142), "where 1.4142136 is exact", 20),
    "1 − erf": Row(
        lambda n: n.op(
            "Mul",
            n.op("Mul", _x(n), 0.5),
            n.op("Sub", 1.0, n.op("Erf", n.op("Div", "x", 2.0**0.5))),
        ),
        "found Sub",
    ),
    "opset 17": Row(_erf(), "needs opset 20; the chain stays"),
}
NO_TANH = {
    "0.0447": Row(_tanh(cubic=0.0447), "the constant 0.044715, found 0.0447"),
    "√(2/π) as 0.8": Row(_tanh(root=0.8), "the constant 0.797885, found 0.8"),
    "x⁴": Row(
        lambda n: _gated(
            n,
            _x(n),
            n.op(
                "Tanh",
                n.op("Mul", n.op("Add", "x", n.op("Mul", n.op("Pow", "x", 4.0), CUBIC)), ROOT),
            ),
            ORDERS[0],
        ),
        "the constant 3, found 4",
    ),
    "opset 17": Row(_tanh(), "needs opset 20; the chain stays"),
}


def _act_sizes(model: Model) -> set[int]:
    matcher = Matcher("act", act(var("x")), model.opset, model.graph.outputs)
    return {len(m.nodes) for node in model.graph.nodes for m in matcher.all_at(node)}


@pytest.mark.parametrize(("build", "_chain"), SPELLINGS.values(), ids=list(SPELLINGS))
def test_operator(build: Build, _chain: str) -> None:
    assert_rewritten(Row(build, "Gelu", 20))


@pytest.mark.parametrize(("build", "chain"), SPELLINGS.values(), ids=list(SPELLINGS))
def test_one_chain_before_opset_20(build: Build, chain: str) -> None:
    model, _ = rewrite(Row(build, "").proto())
    assert sorted(node.op for node in model.graph.nodes) == sorted(chain.split())
    assert max(_act_sizes(model)) == len(model.graph.nodes)


@pytest.mark.parametrize("name", ["(x·½)·gate, Div", "x·(½·inner + ½), Mul, swapped"])
def test_moving_the_half_is_exact(name: str) -> None:
    """Bit by bit, which is more than the proof asks for."""
    proto = Row(ERF[name][0], "").proto()
    model, _ = rewrite(proto)
    feed = feeds(proto)
    assert np.array_equal(run(proto, feed)[0], run(to_proto(model.graph), feed)[0])


def test_constant_of_four_digits_is_still_an_act() -> None:
    model, _ = rewrite(Row(_erf("(x·gate)·½", constant=1.4142), "", 20).proto())
    assert max(_act_sizes(model)) == 5


@pytest.mark.parametrize("opset", [17, 20])
def test_float16_stays_a_chain(opset: int) -> None:
    def build(net: Net) -> str:
        x = _x(net, np.float16)
        inner = net.op("Erf", net.op("Div", x, np.float16(2.0**0.5)))
        gate = net.op("Add", inner, np.float16(1))
        return net.op("Mul", net.op("Mul", x, gate), np.float16(0.5))

    model, _ = rewrite(Row(build, "", opset).proto())
    assert "Gelu" not in {node.op for node in model.graph.nodes}


@pytest.mark.parametrize(("rule", "row"), by_rule({"GeluErf": NO_ERF, "GeluTanh": NO_TANH}))
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)


ACTS = {
    "SiLU": lambda n: n.op("Mul", _x(n), n.op("Sigmoid", "x")),
    "QuickGELU": lambda n: n.op("Mul", _x(n), n.op("Sigmoid", n.op("Mul", "x", 1.702))),
    "QuickGELU, swapped": lambda n: n.op("Mul", n.op("Sigmoid", n.op("Mul", 1.702, _x(n))), "x"),
}
NO_ACTS = {
    "sigmoid of another": lambda n: n.op(
        "Mul", _x(n), n.op("Sigmoid", n.op("Mul", n.input("z", "n", 5, 6), 1.702))
    ),
    "a factor per channel": lambda n: n.op(
        "Mul", _x(n), n.op("Sigmoid", n.op("Mul", "x", n.positive(6)))
    ),
}


@pytest.mark.parametrize("build", ACTS.values(), ids=list(ACTS))
def test_sigmoid_gates_are_acts(build: Build) -> None:
    model, _ = rewrite(Row(build, "").proto())
    assert max(_act_sizes(model)) == len(model.graph.nodes)


@pytest.mark.parametrize("build", NO_ACTS.values(), ids=list(NO_ACTS))
def test_other_gates_are_not(build: Build) -> None:
    model, _ = rewrite(Row(build, "").proto())
    assert max(_act_sizes(model), default=0) <= 1
