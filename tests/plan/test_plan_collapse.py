"""Collapsing groups into calls of local functions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from building import Net, assert_equal, ops
from canonical import canonical
from planning import plan_of, planned

from fusewright.graph.convert import to_proto
from fusewright.plan.collapse import DOMAIN, collapse
from fusewright.plan.plan import Plan


def _blocks(net: Net) -> str:
    """Three alike and one that differs, a residual, a pool and a classifier."""
    x = net.input("x", "n", 4, 8, 8)
    for i in range(3):
        x = net.op("Relu", net.batchnorm(net.conv(x, 4, 4, name=f"c{i}"), 4))
    y = net.op("Relu", net.conv(x, 4, 4, kernel=1, name="other"))
    y = net.op("Relu", net.op("Add", net.conv(y, 4, 4, name="last"), x))
    pooled = net.op("Flatten", net.op("ReduceMean", y, axes=[2, 3], name="pool"))
    return net.op("Gemm", pooled, net.draw(3, 4), net.draw(3), transB=1, name="head")


def _collapsed(plan: Plan) -> onnx.ModelProto:
    return to_proto(collapse(plan.model.graph, plan))


def _proto(build) -> tuple[onnx.ModelProto, Plan]:
    net = Net()
    outputs = build(net)
    proto = net.proto(*((outputs,) if isinstance(outputs, str) else outputs))
    return proto, planned(proto)


def test_each_group_is_one_call_and_the_model_the_same() -> None:
    proto, plan = _proto(_blocks)
    collapsed = _collapsed(plan)
    onnx.checker.check_model(collapsed, full_check=True)
    assert_equal(proto, collapsed)
    calls = {n.name: n.op_type for n in collapsed.graph.node if n.domain == DOMAIN}
    assert len(calls) == len(plan.groups)
    assert calls.pop("pool") == "AdaptiveAvgPool"
    assert set(calls) == {group.name for group in plan.groups} - {"pool"}
    assert [n.op_type for n in collapsed.graph.node if n.domain != DOMAIN] == ["Flatten"]


@pytest.mark.parametrize("before", ["Relu", "Identity"])
def test_a_tensor_that_is_input_and_skip_is_one_input_of_the_call(before: str) -> None:
    def build(net: Net) -> str:
        x = net.op(before, net.conv(net.input("x", 1, 4, 8, 8), 4, 4))
        if before == "Relu":  # conv(x) + x
            return net.op("Add", net.conv(x, 4, 4, name="group"), x)
        return net.op("Add", net.op("Relu", x), x, name="group")  # act(x) + x

    proto, plan = _proto(build)
    group = plan.group("group")
    (call,) = [n for n in _collapsed(plan).graph.node if n.name == group.name]
    assert len(group.inputs) == len(set(group.inputs)) == 1
    assert group.inputs_to_quantize == (0,)
    assert tuple(call.input[:1]) == group.inputs
    assert len(call.input) == 1 + len(group.parameters)
    assert_equal(proto, _collapsed(plan))


def test_one_body_per_structure() -> None:
    _, plan = _proto(_blocks)
    collapsed = _collapsed(plan)
    used = Counter(n.op_type for n in collapsed.graph.node if n.domain == DOMAIN)
    assert used["ConvBNAct"] == 3
    assert used["ConvBNAct_2"] == 1
    names = [function.name for function in collapsed.functions]
    assert len(names) == len(set(names))
    assert set(names) == set(used)
    for function in collapsed.functions:
        assert [e.version for e in function.opset_import if e.domain == ""] == [plan.model.opset]
        assert all(node.name for node in function.node)
        assert not function.overload


def test_graph_stays() -> None:
    proto, plan = _proto(_blocks)
    before = ops(plan.model), canonical(plan)
    first = _collapsed(plan)
    assert (ops(plan.model), canonical(plan)) == before
    assert_equal(proto, plan.model)
    assert first.SerializeToString(deterministic=True) == _collapsed(plan).SerializeToString(
        deterministic=True
    )


def test_group_that_is_switched_off_stays_flat() -> None:
    proto, plan = _proto(_blocks)
    plan.group("c1").apply = False
    collapsed = _collapsed(plan)
    assert_equal(proto, collapsed)
    flat = [n.op_type for n in collapsed.graph.node if n.domain != DOMAIN]
    assert sorted(flat) == ["Conv", "Flatten", "Relu"]


def test_some_groups_only() -> None:
    proto, plan = _proto(_blocks)
    collapsed = to_proto(collapse(plan.model.graph, plan, [plan.group("last")]))
    assert_equal(proto, collapsed)
    assert [n.name for n in collapsed.graph.node if n.domain == DOMAIN] == ["last"]


def test_nothing_to_collapse() -> None:
    proto, plan = _proto(lambda n: n.op("Exp", n.input("x", 2, 3)))
    assert_equal(proto, _collapsed(plan))


# Constants of the computation belong to the body: with other bounds it is another body.
BODIES = {
    "other bounds": (lambda n, x, i: n.op("Clip", n.conv(x, 4, 4), 0.0, 5.0 + i), 2),
    "equal bounds": (lambda n, x, i: n.op("Clip", n.conv(x, 4, 4), 0.0, 6.0), 1),
    "other attribute": (lambda n, x, i: n.op("LeakyRelu", n.conv(x, 4, 4), alpha=0.1 + i), 2),
    "bias or none": (lambda n, x, i: n.op("Relu", n.conv(x, 4, 4, bias=bool(i))), 2),
    "operands swapped": (
        lambda n, x, i: n.op("Mul", *_gate(n, n.conv(x, 4, 4))[:: 1 - 2 * i]),
        2,
    ),
    "slope per channel": (
        lambda n, x, i: n.op("PRelu", n.conv(x, 4, 4), n.positive(4, 1, 1)),
        1,
    ),
    "other pads": (lambda n, x, i: n.conv(x, 4, 4, kernel=3 + 2 * i), 2),
}


def _gate(net: Net, y: str) -> tuple[str, str]:
    return y, net.op("Sigmoid", y)


@pytest.mark.parametrize(("build", "count"), BODIES.values(), ids=list(BODIES))
def test_bodies_are_shared_where_they_are_equal(build, count: int) -> None:
    def two(net: Net) -> str:
        x = net.input("x", 1, 4, 8, 8)
        for i in range(2):
            x = build(net, x, i)
        return x

    proto, plan = _proto(two)
    collapsed = _collapsed(plan)
    assert_equal(proto, collapsed)
    assert len(collapsed.functions) == count


def test_extra_outputs_of_the_last_node() -> None:
    """MaxPool's indices are read outside: the call has two results."""

    def build(net: Net) -> tuple[str, str]:
        y = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 4, 4))
        return net.op("MaxPool", y, outputs=2, kernel_shape=[2, 2])

    proto, plan = _proto(build)
    assert plan.counts() == {"ConvBNActMaxPool": 1}
    assert_equal(proto, _collapsed(plan))


def test_weight_shared_by_two_groups() -> None:
    def build(net: Net) -> str:
        w = net.draw(4, 4, 3, 3)
        x = net.conv(net.input("x", 1, 4, 8, 8), 4, 4, weight=w)
        return net.conv(net.op("Exp", net.op("Sigmoid", x)), 4, 4, weight=w)

    proto, plan = _proto(build)
    assert_equal(proto, _collapsed(plan))


def test_call_does_not_take_the_name_of_a_node_that_stays() -> None:
    plan = plan_of(_blocks)
    stays = next(n for n in plan.model.graph.nodes if n.op == "Flatten")
    plan.groups[0].name = stays.name
    names = [n.name for n in _collapsed(plan).graph.node]
    assert len(names) == len(set(names))


def test_call_that_gives_way_does_not_take_the_name_of_another() -> None:
    plan = plan_of(_blocks)
    stays = next(n for n in plan.model.graph.nodes if n.op == "Flatten")
    plan.groups[0].name, plan.groups[1].name = stays.name, f"{stays.name}_2"
    names = [n.name for n in _collapsed(plan).graph.node]
    assert len(names) == len(set(names))


def test_residual_reads_x_and_skip_in_the_order_of_the_contract() -> None:
    def build(net: Net) -> str:
        x = net.input("x", 1, 4, 8, 8)
        skip = net.op("Exp", net.op("Sigmoid", x))
        return net.op("Relu", net.op("Add", skip, net.conv(x, 4, 4, name="c")))

    proto, plan = _proto(build)
    collapsed = _collapsed(plan)
    (call,) = [n for n in collapsed.graph.node if n.domain == DOMAIN]
    (group,) = plan.groups
    assert tuple(call.input) == (*group.inputs, *group.parameters.values())
    assert_equal(proto, collapsed)
    assert np.array_equal(group.inputs_to_quantize, [0, 1])
