"""Where q, k and v are balanced, and that it is exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from building import Net, assert_equal, run
from quantizing import planned

from fusewright.graph.convert import to_proto
from fusewright.graph.workspace import Workspace, embed
from fusewright.quantize.balance import apply_balance, plan_balance

TOKENS, HEADS, SIZE = 5, 2, 16
WIDTH = HEADS * SIZE
Parts = tuple[str, str, str]


def _linear(net: Net, x: str, out: int = WIDTH) -> str:
    return net.op("Add", net.op("MatMul", x, net.draw(WIDTH, out)), net.draw(out))


def _heads(net: Net, y: str, heads: int = HEADS) -> str:
    y = net.op("Reshape", y, [0, 0, heads, SIZE])
    return net.op("Transpose", y, perm=[0, 2, 1, 3])


def _three(net: Net, x: str) -> Parts:
    q, k, v = (_heads(net, _linear(net, x)) for _ in range(3))
    return q, k, v


def _packed(net: Net, x: str) -> Parts:
    parts = net.op("Split", _linear(net, x, 3 * WIDTH), outputs=3, axis=2)
    q, k, v = (_heads(net, part) for part in parts)
    return q, k, v


def _one(net: Net, x: str) -> Parts:
    y = _heads(net, _linear(net, x))
    return y, y, y


def _queries_are_keys(net: Net, x: str) -> Parts:
    y = _heads(net, _linear(net, x))
    return y, y, _heads(net, _linear(net, x))


def _keys_are_values(net: Net, x: str) -> Parts:
    y = _heads(net, _linear(net, x))
    return _heads(net, _linear(net, x)), y, y


def _overlapping(net: Net, x: str) -> Parts:
    """k and v share a head of one Linear."""
    y = _linear(net, x, 3 * SIZE)
    k, v = (net.op("Slice", y, [a], [a + WIDTH], [2]) for a in (0, SIZE))
    return _heads(net, _linear(net, x)), _heads(net, k), _heads(net, v)


@pytest.mark.parametrize(
    ("parts", "balanced"),
    [
        (_three, True),
        (_packed, True),
        (_one, False),
        (_queries_are_keys, False),
        (_keys_are_values, False),
        (_overlapping, False),
    ],
)
def test_where_and_how(parts: Callable[[Net, str], Parts], balanced: bool) -> None:
    net = Net()
    x = net.input("x", 2, TOKENS, WIDTH)
    q, k, v = parts(net, x)
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", net.op("Mul", scores, SIZE**-0.5), axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, WIDTH])
    output = _linear(net, y)
    plan = planned(net, output)
    assert [g.decision for g in plan.groups if g.fixed] == ["int8"]
    sites = plan_balance(plan)
    assert bool(sites) == balanced
    random = np.random.default_rng(0)
    maxima = {
        linear.output.name: random.uniform(0.1, 10, linear.weight.shape[-1])
        for site in sites
        for linear in site.projection.linears
    }
    workspace = Workspace()
    apply_balance(sites, maxima, workspace)
    proto = embed(to_proto(plan.model.graph), workspace)
    assert_equal(net.proto(output), proto)


@pytest.mark.parametrize(("which", "balanced"), [("projection", False), ("behind", True)])
def test_a_weight_that_is_an_output_of_the_model_stays(which: str, balanced: bool) -> None:
    net = Net()
    x = net.input("x", 2, TOKENS, WIDTH)
    q, k, v = _packed(net, x)
    projection = next(name for name in net.stored if name.startswith("w"))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, WIDTH])
    behind = net.draw(WIDTH, WIDTH)
    outputs = net.op("MatMul", y, behind), projection if which == "projection" else behind
    sites = plan_balance(planned(net, *outputs))
    assert bool(sites) == balanced
    assert all(site.output is None for site in sites)


@pytest.mark.parametrize("seen", ["nothing", "k", "core", "heads"])
def test_what_else_sees_it_sees_what_it_was(seen: str) -> None:
    """Keys, or what the core gives, that are outputs of the model too (a cache of keys)."""
    net = Net()
    q, k, v = _packed(net, net.input("x", 2, TOKENS, WIDTH))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    core = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    heads = net.op("Transpose", core, perm=[0, 2, 1, 3])
    output = _linear(net, net.op("Reshape", heads, [0, 0, WIDTH]))
    tensors = {"k": k, "core": core, "heads": heads}
    more = [tensors[seen]] if seen in tensors else []
    assert bool(plan_balance(planned(net, output, *more))) == (seen == "nothing")


def test_powers_of_two_round_nothing() -> None:
    net = Net()
    q, k, v = _packed(net, net.input("x", 2, TOKENS, WIDTH))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", net.op("Mul", scores, SIZE**-0.5), axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, WIDTH])
    output = _linear(net, y)
    feed = {"x": net.random.standard_normal((2, TOKENS, WIDTH)).astype(np.float32)}
    random, found = np.random.default_rng(0), {}
    maxima = {}
    for powers in (False, True):
        plan = planned(net, output)
        (site,) = plan_balance(plan)
        for linear in site.projection.linears:
            drawn = random.uniform(0.1, 10, linear.weight.shape[-1])
            maxima.setdefault(linear.output.name, drawn)
        workspace = Workspace()
        before = run(embed(to_proto(plan.model.graph), workspace), feed)
        apply_balance([site], maxima, workspace, powers)
        (after,) = run(embed(to_proto(plan.model.graph), workspace), feed)
        found[powers] = float(np.abs(after - before[0]).max())
    assert found[False] > 0.0
    assert found[True] == 0.0
