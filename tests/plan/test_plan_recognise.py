"""Recognising whole nets, and what no group claims."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from building import Net
from onnx import helper
from planning import DIGITS, plan_of

import fusewright
from fusewright.graph.runnable import out_of_reach
from fusewright.plan.plan import Plan
from fusewright.plan.recognise import recognise


def _x(net: Net) -> str:
    return net.input("x", 2, 4, 8, 8)


def _reason(plan: Plan) -> str:
    (entry,) = plan.unclaimed
    return entry.reason


def test_digits_model() -> None:
    plan = fusewright.inspect(DIGITS)
    assert plan.counts() == {
        "ConvBNAddAct": 3,
        "ConvBNActMaxPool": 1,
        "ConvBNAct": 3,
        "ConvBN": 1,
        "Linear": 1,
        "AdaptiveAvgPool": 1,
    }
    assert plan.unclaimed == []
    quantized = {group.kind for group in plan.groups if group.is_quantized}
    assert quantized == set(plan.counts()) - {"AdaptiveAvgPool"}


def test_groups_hold_the_names_of_the_file() -> None:
    plan = fusewright.inspect(DIGITS)
    ops = {node.name: node.op_type for node in onnx.load(DIGITS).graph.node}
    claimed = [name for group in plan.groups for name in group.nodes]
    assert set(claimed) <= set(ops)
    assert len(claimed) == len(set(claimed))
    assert {op for name, op in ops.items() if name not in claimed} <= {"Flatten", "Identity"}


def test_unnamed_node_goes_by_its_first_output() -> None:
    plan = plan_of(lambda n: n.op("Relu", n.conv(_x(n), 6, 4, name="")))
    assert plan.groups[0].name == "_y"
    assert plan.groups[0].nodes[0] == "_y"


UNCLAIMED = {
    "MatMul of two computed tensors": (
        lambda n: n.op("MatMul", n.op("Exp", _x(n)), n.op("Sigmoid", "x")),
        "MatMul",
        "expected a stored matrix of weights, found the computed tensor",
    ),
    "Conv with a computed weight": (
        lambda n: n.op("Conv", _x(n), n.op("Exp", n.input("w", 6, 4, 3, 3)), name="c"),
        "Conv",
        "expected a stored tensor, found the computed tensor 'Exp_1_y'",
    ),
    "Einsum": (
        lambda n: n.op("Einsum", _x(n), n.draw(8, 8), n.draw(8, 8), equation="nchw,wk,kj->nchj"),
        "Einsum",
        "expected Einsum(a, b) → MatMul(a, b), with Transposes and Reshapes, found 3 operands:"
        " no matrix product",
    ),
    "Gemm with a transposed input": (
        lambda n: n.op("Gemm", n.input("x", 5, 3), n.draw(5, 7), transA=1),
        "Gemm",
        "a transposed input",
    ),
    "Gemm with a computed weight": (
        lambda n: n.op("Gemm", n.input("x", 3, 5), n.op("Exp", n.input("w", 5, 7))),
        "Gemm",
        "the computed weight 'Exp_1_y'",
    ),
    "Gemm with a stored first operand": (
        lambda n: n.op("Gemm", n.draw(3, 5), n.op("Exp", n.input("w", 5, 7))),
        "Gemm",
        "a stored first operand",
    ),
    # What onnxruntime's extended optimizations leave in a file.
    "FusedConv": (
        lambda n: n.op(
            "FusedConv", _x(n), n.draw(6, 4, 3, 3), domain="com.microsoft", activation="Relu"
        ),
        "FusedConv",
        "an operator of 'com.microsoft'",
    ),
    "ConvTranspose with a computed weight": (
        lambda n: n.op("ConvTranspose", _x(n), n.op("Exp", n.input("w", 4, 6, 3, 3))),
        "ConvTranspose",
        "expected a stored tensor",
    ),
}


@pytest.mark.parametrize("case", UNCLAIMED.values(), ids=list(UNCLAIMED))
def test_unclaimed_with_the_reason(case: tuple) -> None:
    build, op, words = case
    plan = plan_of(build)
    assert plan.groups == []
    assert [entry.op for entry in plan.unclaimed] == [op]
    assert _reason(plan)
    assert words in _reason(plan)


def _branches(net: Net, heavy: str) -> str:
    graphs = []
    x = _x(net)
    w = net.draw(4, 4, 3, 3)
    for name in ("then", "else"):
        node = helper.make_node(heavy, [x, w], [f"{name}_y"], f"{name}_node", pads=[1, 1, 1, 1])
        result = helper.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, [2, 4, 8, 8])
        graphs.append(helper.make_graph([node], name, [], [result]))
    flag = net.input("flag", dtype=np.bool_)
    return net.op("If", flag, then_branch=graphs[0], else_branch=graphs[1], name="choice")


def test_ops_inside_a_branch_are_listed() -> None:
    plan = plan_of(lambda n: n.op("Relu", _branches(n, "Conv")))
    found = {(entry.op, entry.name) for entry in plan.unclaimed}
    assert found == {("Conv", "then_node"), ("Conv", "else_node")}
    assert all("inside a subgraph of If 'choice'" in entry.reason for entry in plan.unclaimed)


def test_light_ops_are_not_listed() -> None:
    plan = plan_of(lambda n: n.op("Softmax", n.op("Exp", _x(n))))
    assert plan.groups == []
    assert plan.unclaimed == []


def test_frozen_nodes_are_in_no_group() -> None:
    def build(net: Net) -> str:
        y = net.op("Relu", net.conv(_x(net), 4, 4, name="before"))
        y = net.op("Strange", y, domain="custom")
        return net.op("Relu", net.conv(y, 4, 4, name="behind"))

    net = Net()
    model = net.model(build(net))
    lost = out_of_reach(model.graph, frozenset({"custom::Strange"}))
    model.frozen = frozenset(node.name for node in lost)
    plan, _ = recognise(model)
    assert [group.name for group in plan.groups] == ["before"]
    assert [entry.name for entry in plan.unclaimed] == ["behind"]
    assert "custom operator" in _reason(plan)
