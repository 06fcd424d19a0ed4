"""A scale on keys that no projection can take moves to the queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from building import Net
from rewriting import Row, assert_left_alone, by_rule, rewritten

from fusewright.graph.model import Model
from fusewright.graph.walk import is_constant, scalar

ROOT = 0.5**0.5
Build = Callable[[Net], "str | tuple[str, ...]"]


def _rotated(net: Net, name: str) -> str:
    """Heads behind something that is neither layout nor a norm, as a rotary embedding is."""
    return net.op("Sin", net.input(name, "n", 3, 5, 4))


def _core(net: Net, q: str, k: str) -> str:
    scores = net.op("MatMul", q, k)
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), _rotated(net, "v"))


def _turned(net: Net, k: str) -> str:
    return net.op("Transpose", k, perm=[0, 1, 3, 2])


def _as_dynamo(net: Net, k: str) -> str:
    k = net.op("Transpose", net.op("Reshape", k, [-1, 5, 4]), perm=[0, 2, 1])
    return net.op("Reshape", k, [-1, 3, 4, 5])


def _scaled(
    net: Net, y: str, value: object = ROOT, op: str = "Mul", *, swapped: bool = False
) -> str:
    return net.op(op, *((value, y) if swapped else (y, value)))


def _shared(net: Net) -> str:
    root = net.store(ROOT)
    k = _scaled(net, _turned(net, _rotated(net, "k")), root)
    return _core(net, _scaled(net, _rotated(net, "q"), root), k)


MOVED: dict[str, tuple[Build, float]] = {
    "k alone": (
        lambda n: _core(n, _rotated(n, "q"), _scaled(n, _turned(n, _rotated(n, "k")))),
        ROOT,
    ),
    "in front of the Transpose": (
        lambda n: _core(n, _rotated(n, "q"), _turned(n, _scaled(n, _rotated(n, "k")))),
        ROOT,
    ),
    "in front of dynamo's layout": (
        lambda n: _core(n, _rotated(n, "q"), _as_dynamo(n, _scaled(n, _rotated(n, "k")))),
        ROOT,
    ),
    "q and k, each by the root": (
        lambda n: _core(n, _scaled(n, _rotated(n, "q")), _scaled(n, _turned(n, _rotated(n, "k")))),
        0.5,
    ),
    "the number first": (
        lambda n: _core(
            n, _rotated(n, "q"), _scaled(n, _turned(n, _rotated(n, "k")), swapped=True)
        ),
        ROOT,
    ),
    "a division": (
        lambda n: _core(n, _rotated(n, "q"), _scaled(n, _turned(n, _rotated(n, "k")), 4.0, "Div")),
        0.25,
    ),
    "a number of rank 4": (
        lambda n: _core(
            n,
            _rotated(n, "q"),
            _scaled(n, _turned(n, _rotated(n, "k")), np.full((1, 1, 1, 1), ROOT, np.float32)),
        ),
        ROOT,
    ),
    "one number for q and for k": (_shared, 0.5),
}


def _k_read_too(net: Net) -> tuple[str, ...]:
    k = _scaled(net, _turned(net, _rotated(net, "k")))
    return _core(net, _rotated(net, "q"), k), net.op("Neg", k)


def _k_given_out(net: Net) -> tuple[str, ...]:
    k = _scaled(net, _turned(net, _rotated(net, "k")))
    return _core(net, _rotated(net, "q"), k), k


_NO_NUMBER = "k is not scaled by one stored number"
LEFT = {
    "not scaled": Row(
        lambda n: _core(n, _rotated(n, "q"), _turned(n, _rotated(n, "k"))), _NO_NUMBER
    ),
    "a number per head": Row(
        lambda n: _core(
            n,
            _rotated(n, "q"),
            _scaled(n, _turned(n, _rotated(n, "k")), n.positive(3, 1, 1)),
        ),
        _NO_NUMBER,
    ),
    "a computed number": Row(
        lambda n: _core(
            n, _rotated(n, "q"), _scaled(n, _turned(n, _rotated(n, "k")), n.input("c", 1))
        ),
        _NO_NUMBER,
    ),
    "what is divided": Row(
        lambda n: _core(
            n,
            _rotated(n, "q"),
            _scaled(n, n.op("Exp", _turned(n, _rotated(n, "k"))), 2.0, "Div", swapped=True),
        ),
        _NO_NUMBER,
    ),
    "by zero": Row(
        lambda n: _core(n, _rotated(n, "q"), _scaled(n, _turned(n, _rotated(n, "k")), 0.0)),
        _NO_NUMBER,
    ),
    "read unscaled by another": Row(_k_read_too, _NO_NUMBER),
    "an output of the model": Row(_k_given_out, _NO_NUMBER),
}


def _factors(model: Model) -> list[float]:
    """The numbers that something is multiplied by on its way to q·kᵀ's left side."""
    scores = next(node for node in model.graph.nodes if node.op == "MatMul")
    found, node = [], scores.inputs[0].inputs[0]
    while node.op == "Mul":
        (stored,) = (t for t in node.inputs if is_constant(t))
        (node,) = (t.inputs[0] for t in node.inputs if not is_constant(t))
        found.append(scalar(stored))
    return found


@pytest.mark.parametrize(("build", "factor"), MOVED.values(), ids=MOVED)
def test_queries_are_scaled_once(build: Build, factor: float) -> None:
    model, outcomes = rewritten(Row(build, "").proto())
    assert len(outcomes["KeyScale"].applied) == 1
    assert _factors(model) == pytest.approx([factor], rel=1e-6)
    assert sum(node.op in ("Mul", "Div") for node in model.graph.nodes) == 1


@pytest.mark.parametrize(("rule", "row"), by_rule({"KeyScale": LEFT}))
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)


def test_a_projection_takes_its_scale_before() -> None:
    """Of a Linear behind layout nothing moves: its weights take the number."""

    def build(net: Net) -> str:
        x = net.input("x", "n", 5, 12)
        k = net.op("Reshape", net.op("MatMul", x, net.draw(12, 12)), [0, 0, 3, 4])
        k = net.op("Transpose", k, perm=[0, 2, 3, 1])
        return _core(net, _rotated(net, "q"), _scaled(net, k))

    model, outcomes = rewritten(Row(build, "").proto())
    assert not outcomes["KeyScale"].applied
    assert not any(node.op == "Mul" for node in model.graph.nodes)
