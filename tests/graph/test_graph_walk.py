"""Order, depth, what a node reads, and the small edits that rewrites are made of."""

from __future__ import annotations

import random
import sys
import time

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
import pytest
from building import Net, assert_equal, ops

from fusewright.graph.convert import to_proto
from fusewright.graph.edit import Names, bypass, redirect, sweep
from fusewright.graph.walk import (
    attribute,
    axes_of,
    captured,
    input_at,
    levels,
    reads,
    scalar,
    toposort,
)


def _chain(length: int) -> list[gs.Node]:
    tensors = [gs.Variable(f"t{i}", np.float32, [1]) for i in range(length + 1)]
    return [
        gs.Node("Relu", f"n{i}", inputs=[tensors[i]], outputs=[tensors[i + 1]])
        for i in range(length)
    ]


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_toposort_of_20000_badly_ordered_nodes(order: str) -> None:
    nodes = _chain(20_000)
    mixed = nodes[::-1] if order == "reversed" else random.Random(0).sample(nodes, len(nodes))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        start = time.process_time()
        result = toposort(mixed)
        seconds = time.process_time() - start
    finally:
        sys.setrecursionlimit(limit)
    assert all(a is b for a, b in zip(result, nodes, strict=True))
    assert seconds < 5
    assert levels(result)[id(nodes[-1])] == 20_000


def test_toposort_keeps_file_order_among_the_ready() -> None:
    x = gs.Variable("x")
    nodes = [gs.Node("Relu", f"n{i}", inputs=[x], outputs=[gs.Variable(f"y{i}")]) for i in range(5)]
    assert [n.name for n in toposort(nodes)] == [f"n{i}" for i in range(5)]


def test_toposort_moves_only_what_must_move() -> None:
    """Two chains one after the other, and the first node of the first chain at the end."""
    first, second = _chain(3), _chain(3)
    given = [*first[1:], *second, first[0]]
    assert [id(n) for n in toposort(given)] == [id(n) for n in (*second, *first)]


def test_toposort_names_a_node_of_the_cycle() -> None:
    first, *_, last = nodes = _chain(3)
    first.inputs = [last.outputs[0]]
    with pytest.raises(ValueError, match="cycle through node 'n0'"):
        toposort(nodes)


def test_level_is_the_longest_path() -> None:
    net = Net()
    x = net.input("x", 1, 4)
    long = net.op("Relu", net.op("Relu", net.op("Relu", x)))
    nodes = net.model(net.op("Add", long, net.op("Tanh", x))).graph.nodes
    level = levels(nodes)
    assert {n.op: level[id(n)] for n in nodes} == {"Relu": 3, "Tanh": 1, "Add": 4}


def test_reads_counts_what_a_subgraph_captures() -> None:
    outer, inner = gs.Variable("outer", np.float32, [1]), gs.Variable("inner", np.float32, [1])
    given = gs.Variable("given", np.float32, [1])
    body = gs.Graph(
        nodes=[gs.Node("Add", "add", inputs=[outer, given], outputs=[inner])],
        inputs=[given],
        outputs=[inner],
    )
    condition = gs.Variable("condition")
    node = gs.Node("If", "if", {"then_branch": body}, [condition], [gs.Variable("y")])
    assert [t.name for t in captured(node)] == ["outer"]
    assert [t.name for t in reads(node)] == ["condition", "outer"]
    nested = gs.Graph(nodes=[node], outputs=node.outputs)
    loop = gs.Node("Loop", "loop", {"body": nested}, [], [gs.Variable("z")])
    assert [t.name for t in captured(loop)] == ["condition", "outer"]


def test_attribute_falls_back_to_the_schema_of_the_opset() -> None:
    node = gs.Node("LeakyRelu", "n", {}, [gs.Variable("x")], [gs.Variable("y")])
    assert attribute(node, "alpha", 17) == pytest.approx(0.01)
    node.attrs["alpha"] = 0.3
    assert attribute(node, "alpha", 17) == 0.3
    assert attribute(gs.Node("BatchNormalization", "b"), "training_mode", 17) == 0
    assert attribute(gs.Node("BatchNormalization", "b"), "training_mode", 9) is None
    assert attribute(gs.Node("LeakyRelu", "n", domain="acme"), "alpha", 17) is None


def test_axes_from_attribute_or_input() -> None:
    by_attribute = gs.Node("ReduceMean", "n", {"axes": [-1, 2]}, [gs.Variable("x")])
    assert axes_of(by_attribute, 17, 4) == [3, 2]
    assert axes_of(by_attribute, 17, None) is None
    by_input = gs.Node("Squeeze", "n", {}, [gs.Variable("x"), gs.Constant("a", np.array([-2]))])
    assert axes_of(by_input, 17, 4) == [2]
    computed = gs.Node("Squeeze", "n", {}, [gs.Variable("x"), gs.Variable("a")])
    assert axes_of(computed, 17, 4) is None
    assert axes_of(gs.Node("Squeeze", "n", {}, [gs.Variable("x")]), 17, 4) == []


def test_scalar_of_one_element_of_any_rank() -> None:
    for array, value in (
        (np.float32(2), 2.0),
        (np.full((1, 1, 1), 3, np.int64), 3.0),
        (np.array([True]), 1.0),
        (np.array([0.5], ml_dtypes.bfloat16), 0.5),
        (np.ones(2, np.float32), None),
        (np.array([1j]), None),
    ):
        assert scalar(gs.Constant("c", np.asarray(array))) == value
    assert scalar(gs.Variable("x")) is None


def test_input_at() -> None:
    node = gs.Node("Clip", "n", {}, [gs.Variable("x"), gs.Variable.empty()])
    assert [input_at(node, i) is None for i in range(3)] == [False, True, True]


def test_bypass_keeps_the_names_of_outputs() -> None:
    net = Net()
    x = net.op("Relu", net.input("x", 1, 4))
    y = net.op("Identity", x)
    proto = net.proto(y)
    model = net.model(y)
    identity = next(n for n in model.graph.nodes if n.op == "Identity")
    assert bypass(model.graph, identity, identity.inputs[0])
    sweep(model.graph)
    assert ops(model) == "Relu"
    assert_equal(proto, model)


@pytest.mark.parametrize("source", ["an input", "an output", "stored"])
def test_bypass_refuses_where_the_interface_would_lose_a_name(source: str) -> None:
    net = Net()
    x = net.input("x", 1, 4)
    made = {
        "an input": lambda: x,
        "an output": lambda: net.op("Relu", x),
        "stored": lambda: net.draw(1, 4),
    }[source]()
    outputs = [net.op("Identity", made), *([made] if source == "an output" else [])]
    proto = net.proto(*outputs)
    model = net.model(*outputs)
    identity = next(n for n in model.graph.nodes if n.op == "Identity")
    assert not bypass(model.graph, identity, identity.inputs[0])
    assert to_proto(model.graph).graph.node[-1].op_type == "Identity"
    assert [v.name for v in to_proto(model.graph).graph.output] == [
        v.name for v in proto.graph.output
    ]


def test_redirect_moves_every_slot() -> None:
    a, b = gs.Variable("a"), gs.Variable("b")
    node = gs.Node("Mul", "n", {}, [a, a], [gs.Variable("y")])
    redirect(a, b)
    assert all(t is b for t in node.inputs)
    assert not a.outputs


def test_sweep_drops_what_nothing_reads_and_nothing_else() -> None:
    net = Net()
    x = net.input("x", 1, 4)
    y = net.op("Relu", x)
    net.op("Exp", net.op("Tanh", x))
    model = net.model(y)
    sweep(model.graph)
    assert ops(model) == "Relu"


def test_names_are_free_in_subgraphs_too() -> None:
    inside = gs.Variable("taken_inside", np.float32, [1])
    body = gs.Graph(nodes=[gs.Node("Relu", "node_inside", {}, [inside], [gs.Variable("r")])])
    node = gs.Node("If", "if", {"then_branch": body}, [gs.Variable("c")], [gs.Variable("y")])
    names = Names(gs.Graph(nodes=[node], outputs=node.outputs))
    for wanted in ("taken_inside", "node_inside", "r", "if", "c", "y"):
        assert names.fresh(wanted) == f"{wanted}_2"
    assert [names.fresh("free"), names.fresh("free")] == ["free", "free_2"]
