"""The residual stream in INT8, on request."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net, as_model

from fusewright.plan.decide import Rules, decide
from fusewright.plan.plan import Plan
from fusewright.plan.recognise import recognise
from fusewright.quantize.placement import Placement, place
from fusewright.quantize.residual import stream_tensors


def _block(net: Net, x: str, width: int = 8) -> str:
    """x + Linear(Linear(LayerNorm(x)))."""
    y = net.op("LayerNormalization", x, net.draw(width), net.draw(width), axis=-1)
    y = net.op("Relu", net.op("MatMul", y, net.draw(width, width)))
    return net.op("Add", x, net.op("MatMul", y, net.draw(width, width)))


def _plan(net: Net, *outputs: str, rules: Rules = Rules()) -> Plan:  # noqa: B008 - frozen
    plan, _ = recognise(as_model(net.proto(*outputs), clean=True))
    decide(plan, rules)
    return plan


def _readers(placement: Placement, plan: Plan) -> dict[str, set[str]]:
    op = {node.name: node.op for node in plan.model.graph.nodes}
    return {s.tensor: {op[name] for name, _ in s.readers} for s in placement.activations}


@pytest.fixture
def plan() -> Plan:
    net = Net()
    x = net.op("Exp", net.input("x", "b", 5, 8))
    y = _block(net, _block(net, x))
    return _plan(net, net.op("MatMul", y, net.draw(8, 3)))


def test_stays_float_by_default(plan: Plan) -> None:
    assert all(ops == {"MatMul"} for ops in _readers(place(plan), plan).values())


def test_norm_and_sum_read_one_pair(plan: Plan) -> None:
    found = _readers(place(plan, stream_tensors(plan)), plan)
    stream = [ops for ops in found.values() if "Add" in ops]
    assert stream == [{"LayerNormalization", "Add"}] * 2


def test_branch_gets_no_pair(plan: Plan) -> None:
    placement = place(plan, stream_tensors(plan))
    nodes = {node.name: node for node in plan.model.graph.nodes}
    for site in placement.activations:
        adds = [(nodes[name], i) for name, i in site.readers if nodes[name].op == "Add"]
        for node, i in adds:
            other = node.inputs[1 - i]
            assert other.inputs[0].op == "MatMul" and other.name != site.tensor


def test_the_stream_is_not_of_a_format_in_blocks() -> None:
    """Most Linears are NVFP4; the second block reads its norm in INT8, and so the stream."""
    net = Net(23)
    y = _block(net, net.op("Exp", net.input("x", 2, 5, 64)), 64)
    y = _block(net, y, 64)
    linears = [node.name for node in net.nodes if node.op_type == "MatMul"]
    plan = _plan(net, y, rules=Rules(quantized="nvfp4", group_precision=(f"{linears[2]}=int8",)))
    placement = place(plan, stream_tensors(plan))
    stream = [s.tensor for s in placement.activations if s.format == "int8"]
    found = _readers(placement, plan)
    assert [found[name] for name in stream] == [{"Add"}, {"LayerNormalization", "Add"}, {"MatMul"}]


def test_norm_whose_output_is_float_reads_float() -> None:
    net = Net()
    x = net.op("Exp", net.input("x", "b", 5, 8))
    y = _block(net, x)
    y = net.op("LayerNormalization", y, net.draw(8), np.zeros(8, np.float32), axis=-1)
    plan = _plan(net, net.op("Exp", y))
    found = _readers(place(plan, stream_tensors(plan)), plan)
    assert {"LayerNormalization"} not in found.values()
