"""Extra, numbered constants and Chain: parts of a pattern that stand any number of times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from building import Net

from fusewright.match.matcher import Match, Matcher, Miss
from fusewright.match.pattern import (
    Pattern,
    chain,
    const,
    extra,
    maybe,
    number,
    one_of,
    op,
    root_types,
    var,
)

X = var("x")
Build = Callable[[Net], str]


def _laid(pattern: Pattern, build: Build) -> tuple[list[Match], Miss | None]:
    net = Net()
    model = net.model(build(net))
    matcher = Matcher("test", pattern, model.opset, model.graph.outputs)
    return list(matcher.all_at(model.graph.nodes[-1])), matcher.miss


def _first(pattern: Pattern, build: Build) -> Match:
    matches, miss = _laid(pattern, build)
    assert matches, miss
    return matches[0]


def _x(net: Net, *shape: int) -> str:
    return net.input("x", *(shape or (2, 3)))


def _scaled(inner: Pattern, **conditions: Any) -> Pattern:
    return chain(inner, lambda y: op("Mul|Div", y, const("c", many=True, **conditions)))


def _steps(count: int) -> Build:
    """Softmax of `count` scales around a Relu."""

    def build(net: Net) -> str:
        y = net.op("Relu", _x(net))
        for i in range(count):
            y = net.op("Mul" if i % 2 else "Div", y, 2.0 + i)
        return net.op("Softmax", y)

    return build


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_chain_of_any_length(count: int) -> None:
    match = _first(op("Softmax", _scaled(op("Relu", X))), _steps(count))
    assert len(match.nodes) == 2 + count
    # Bound in the order of the computation.
    bound = [match.tensors[f"c{i}"].values for i in range(count)]
    assert bound == [2.0 + i for i in range(count)]


def test_chain_at_the_root() -> None:
    match = _first(_scaled(op("Relu", X)), lambda n: n.op("Mul", n.op("Relu", _x(n)), 2.0))
    assert [node.op for node in match.nodes] == ["Mul", "Relu"]
    match = _first(_scaled(op("Relu", X)), lambda n: n.op("Relu", _x(n)))
    assert [node.op for node in match.nodes] == ["Relu"]


def test_longest_chain_comes_first_and_every_shorter_one_after_it() -> None:
    matches, _ = _laid(op("Softmax", _scaled(X)), _steps(3))
    assert [len(match.nodes) for match in matches] == [4, 3, 2, 1]
    assert matches[0].tensors["x"].name == "Relu_1_y"


def test_chain_below_a_chain() -> None:
    inner = _scaled(op("Relu", X))
    pattern = op("Softmax", chain(inner, lambda y: op("Add", y, extra("mask"))))

    def build(net: Net) -> str:
        y = net.op("Mul", net.op("Relu", _x(net)), 2.0)
        return net.op("Softmax", net.op("Add", net.op("Add", y, net.draw(3)), net.input("m", 3)))

    match = _first(pattern, build)
    assert [node.op for node in match.nodes] == ["Softmax", "Add", "Add", "Mul", "Relu"]
    assert list(match.tensors["mask0"].shape) == [3]
    assert match.tensors["mask1"].name == "m"


def test_two_chains_of_one_step_are_two_places() -> None:
    """q and k have a scale each; that of one is not that of the other."""
    pattern = op("MatMul", _scaled(var("q")), _scaled(var("k")))

    def build(net: Net) -> str:
        q, k = net.input("q", 2, 3), net.input("k", 3, 4)
        return net.op("MatMul", net.op("Mul", q, 2.0), net.op("Mul", net.op("Div", k, 3.0), 4.0))

    match = _first(pattern, build)
    assert [match.tensors[f"c{i}"].values for i in range(3)] == [2.0, 3.0, 4.0]
    assert (match.tensors["q"].name, match.tensors["k"].name) == ("q", "k")


def test_roots_of_a_chain_are_those_of_its_steps_and_of_what_is_inside() -> None:
    assert root_types(_scaled(op("Relu|Tanh", X))) == {"Mul", "Div", "Relu", "Tanh"}
    assert root_types(chain(X, lambda y: maybe("Cast", op("Neg", y)))) == {"Cast", "Neg"}
    assert root_types(_scaled(_scaled(op("Relu", X)))) == {"Mul", "Div", "Relu"}


# What must not match, and the words of the reason.
MISSES: dict[str, tuple[Pattern, Build, str]] = {
    "an operator between two steps": (
        op("Softmax", _scaled(op("Relu", X))),
        lambda n: n.op("Softmax", n.op("Mul", n.op("Neg", n.op("Relu", _x(n))), 2.0)),
        "expected Relu, found Neg",
    ),
    "a step of computed scale": (
        op("Softmax", _scaled(op("Relu", X))),
        lambda n: n.op("Softmax", n.op("Mul", n.op("Relu", _x(n)), n.input("s", 1))),
        "expected a stored tensor, found the computed tensor 's'",
    ),
    "the second step of computed scale": (
        op("Softmax", _scaled(op("Relu", X))),
        lambda n: n.op(
            "Softmax", n.op("Mul", n.op("Mul", n.op("Relu", _x(n)), n.input("s", 1)), 2.0)
        ),
        "expected a stored tensor, found the computed tensor 's'",
    ),
    "a step read elsewhere": (
        op("Softmax", _scaled(op("Relu", X))),
        lambda n: _read_twice(n, n.op("Mul", n.op("Relu", _x(n)), 2.0)),
        "expected an interior value used once, found 'Mul_2_y' used elsewhere",
    ),
    "nothing inside": (
        op("Softmax", _scaled(op("Relu", X))),
        lambda n: n.op("Softmax", n.op("Mul", _x(n), 2.0)),
        "expected Relu, found the input 'x'",
    ),
    "an extra that is left out": (
        op("Clip", X, extra("low"), const()),
        lambda n: n.op("Clip", _x(n), None, 6.0),
        "expected a tensor 'low', found nothing",
    ),
    "a scale that the condition refuses": (
        op("Softmax", _scaled(op("Relu", X), test=lambda t: t.shape == (), expected="one number")),
        lambda n: n.op("Softmax", n.op("Mul", n.op("Relu", _x(n)), n.draw(2, 3))),
        "expected one number, found a constant of shape [2, 3]",
    ),
}


def _read_twice(net: Net, y: str) -> str:
    net.op("Neg", y)
    return net.op("Softmax", y)


@pytest.mark.parametrize("name", MISSES)
def test_miss(name: str) -> None:
    pattern, build, reason = MISSES[name]
    matches, miss = _laid(pattern, build)
    assert matches == []
    assert str(miss) == reason


@pytest.mark.parametrize("stored", [False, True])
def test_extra_is_computed_or_stored(stored: bool) -> None:
    def build(net: Net) -> str:
        return net.op("Sub", _x(net), net.draw(3) if stored else net.input("m", 3))

    match = _first(op("Sub", X, extra("mask")), build)
    assert set(match.tensors) == {"x", "mask0"}


def test_extras_of_one_name_may_be_one_tensor() -> None:
    """A mask added twice is two extras, as two masks are."""
    pattern = op("Softmax", chain(op("Relu", X), lambda y: op("Sub", y, extra("mask"))))

    def build(net: Net) -> str:
        y, mask = net.op("Relu", _x(net)), net.input("m", 3)
        return net.op("Softmax", net.op("Sub", net.op("Sub", y, mask), mask))

    match = _first(pattern, build)
    assert match.tensors["mask0"] is match.tensors["mask1"]


def test_extra_may_not_be_a_value_of_the_match() -> None:
    """softmax(relu(x) + relu(x)·2): what is added is made inside, so it is no mask."""
    pattern = op("Softmax", chain(op("Relu", X), lambda y: op("Add", y, extra("mask"))))

    def build(net: Net) -> str:
        y = net.op("Relu", _x(net))
        return net.op("Softmax", net.op("Add", y, net.op("Mul", y, 2.0)))

    matches, miss = _laid(pattern, build)
    assert matches == []
    assert miss is not None


def test_dead_ends_of_spellings_that_were_not_needed_are_no_reason() -> None:
    """The first spelling of q fails deeper than the scale, but the second one holds."""
    spelled = one_of(op("Transpose", op("Div", X, number(2.0))), X)
    pattern = op("Softmax", op("Mul", op("Relu", spelled), const()))

    def build(net: Net) -> str:
        y = net.op("Relu", net.op("Transpose", net.op("Neg", _x(net)), perm=[1, 0]))
        return net.op("Softmax", net.op("Mul", y, net.input("s", 1)))

    matches, miss = _laid(pattern, build)
    assert matches == []
    assert str(miss) == "expected a stored tensor, found the computed tensor 's'"


def test_matching_a_long_chain_takes_linear_time() -> None:
    match = _first(op("Softmax", _scaled(op("Relu", X))), _steps(60))
    assert len(match.nodes) == 62
