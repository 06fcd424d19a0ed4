"""The groups of attention and of Swin: what they read, hold and write, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from attending import (
    HEADS,
    MEMORY,
    SELF,
    SIZE,
    TOKENS,
    WIDTH,
    Operands,
    Step,
    assert_collapses,
    found_in,
    group_of,
    kinds,
    linear,
    proto_of,
    scaled,
    self_attention,
    split_heads,
    three_linears,
    tokens,
    whole,
)
from building import Net
from windows import Block, swin

from fusewright.plan.collapse import DOMAIN
from fusewright.plan.plan import Plan

PROJECTION, CORE = "MHAInProjection", "ScaledDotProductAttention"


def _shape(plan: Plan, name: str) -> list[int]:
    return list(plan.model.graph.tensors()[name].shape)


def _cross(net: Net) -> str:
    return whole(net, three_linears(net, tokens(net), tokens(net, length=MEMORY, name="memory")))


def _three_inputs(net: Net) -> str:
    """DETR: positions are added to q and k, not to v."""
    x = tokens(net)
    q, k, v = (linear(net, net.op(op, x)) for op in ("Neg", "Exp", "Tanh"))
    k = split_heads(net, k, turned=True)
    return whole(net, Operands(split_heads(net, q), k, split_heads(net, v)))


def _two_inputs(net: Net) -> str:
    """DETR: q and k of one tensor, v of another."""
    x = tokens(net)
    both, of_v = net.op("Neg", x), net.op("Tanh", x)
    q, k, v = linear(net, both), linear(net, both), linear(net, of_v)
    k = split_heads(net, k, turned=True)
    return whole(net, Operands(split_heads(net, q), k, split_heads(net, v)))


# Inputs, columns of each stored matrix.
PROJECTIONS = {
    "self": (self_attention, 1, {"w": 3 * WIDTH}),
    "cross": (_cross, 2, {"w": WIDTH, "w_k": 2 * WIDTH}),
    "q and k of one tensor, v of another": (_two_inputs, 2, {"w": 2 * WIDTH, "w_k": WIDTH}),
    "an input each": (_three_inputs, 3, {"w": WIDTH, "w_k": WIDTH, "w_v": WIDTH}),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projection(name: str) -> None:
    build, inputs, widths = PROJECTIONS[name]
    proto = proto_of(build)
    plan, _ = found_in(proto)
    assert kinds(plan) == SELF
    group, core = group_of(plan, PROJECTION), group_of(plan, CORE)
    assert len(group.inputs) == inputs
    assert group.inputs_to_quantize == tuple(range(inputs))
    weights = {n: t for n, t in group.parameters.items() if n.startswith("w")}
    assert {n: _shape(plan, t)[1] for n, t in weights.items()} == widths
    assert set(group.parameters) == {*widths, *(n.replace("w", "b") for n in widths)}
    assert group.outputs == core.inputs[:3]
    assert group.details == {"heads": HEADS}
    collapsed = assert_collapses(proto, plan)
    (call,) = [n for n in collapsed.graph.node if n.op_type == PROJECTION]
    assert tuple(call.input) == (*group.inputs, *group.parameters.values())
    assert tuple(call.output) == group.outputs


def _operands_of(plan: Plan) -> list[list[int]]:
    return [_shape(plan, name) for name in group_of(plan, CORE).inputs]


def test_core_reads_q_k_v_in_that_order() -> None:
    plan, _ = found_in(proto_of(_cross))
    q, k, v = _operands_of(plan)
    assert (q[-2:], k[-2:], v[-2:]) == ([TOKENS, SIZE], [SIZE, MEMORY], [MEMORY, SIZE])
    group = group_of(plan, CORE)
    assert group.inputs_to_quantize == (0, 1, 2)
    assert group.details == {"head_size": SIZE, "sequence": [TOKENS, MEMORY]}
    assert group.parameters == {}
    assert group.interior == ()


def _masked(net: Net, y: str) -> str:
    """A mask in front of the stored bias, a boolean mask behind it."""
    y = net.op("Add", scaled(net, y), net.input("first", TOKENS, TOKENS))
    y = net.op("Add", y, net.draw(HEADS, TOKENS, TOKENS))
    return net.op("Where", net.input("second", TOKENS, dtype=bool), y, np.float32(-9))


def test_masks_follow_and_then_what_is_stored() -> None:
    proto = proto_of(lambda n: self_attention(n, between=_masked))
    plan, _ = found_in(proto)
    group = group_of(plan, CORE)
    assert sorted(group.inputs[3:]) == ["first", "second"]
    assert group.inputs_to_quantize == (0, 1, 2)
    assert [_shape(plan, t) for t in group.parameters.values()] == [[HEADS, TOKENS, TOKENS]]
    collapsed = assert_collapses(proto, plan)
    (call,) = [n for n in collapsed.graph.node if n.op_type == CORE]
    assert tuple(call.input) == (*group.inputs, *group.parameters.values())


def test_a_mask_read_twice_is_one_input() -> None:
    def twice(net: Net, y: str) -> str:
        mask = net.input("mask", TOKENS, TOKENS)
        return net.op("Add", net.op("Add", scaled(net, y), mask), mask)

    proto = proto_of(lambda n: self_attention(n, between=twice))
    plan, _ = found_in(proto)
    assert group_of(plan, CORE).inputs[3:] == ("mask",)
    assert_collapses(proto, plan)


def test_attention_of_one_tensor() -> None:
    """softmax(x·xᵀ)·x: one input that is q and v, its transpose k; no projection."""

    def build(net: Net) -> str:
        x = net.op("Tanh", net.input("x", 2, TOKENS, SIZE))
        k = net.op("Transpose", x, perm=[0, 2, 1])
        p = net.op("Softmax", net.op("MatMul", x, k), axis=-1)
        return net.op("MatMul", p, x)

    proto = proto_of(build)
    plan, _ = found_in(proto)
    assert kinds(plan) == CORE
    group = group_of(plan, CORE)
    assert len(group.inputs) == 2
    assert group.inputs_to_quantize == (0, 1)
    assert_collapses(proto, plan)


STORED: dict[str, tuple[Step, int, int]] = {
    # Stored tensors behind the inputs of the call, and constants in its body.
    "bias": (lambda n, y: n.op("Add", y, n.draw(HEADS, TOKENS, TOKENS)), 1, 0),
    "scale per head": (lambda n, y: n.op("Mul", y, n.positive(HEADS, 1, 1)), 1, 0),
    "bounds": (lambda n, y: n.op("Max", y, np.float32(-9)), 0, 1),
    "targets of Reshapes": (
        lambda n, y: n.op("Reshape", n.op("Reshape", y, [-1, TOKENS]), [2, HEADS, TOKENS, TOKENS]),
        0,
        2,
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_is_an_input_or_belongs_to_the_body(name: str) -> None:
    """What differs from layer to layer is an input: one body serves them all."""
    step, inputs, constants = STORED[name]
    proto = proto_of(lambda n: self_attention(n, between=step))
    plan, _ = found_in(proto)
    assert len(group_of(plan, CORE).parameters) == inputs
    collapsed = assert_collapses(proto, plan)
    (body,) = [f for f in collapsed.functions if f.name == CORE]
    assert sum(node.op_type == "Constant" for node in body.node) == constants


def test_layers_of_one_structure_share_their_bodies() -> None:
    """The scale of the scores, the biases and the masks differ, and are no part of a body."""

    def build(net: Net) -> str:
        x = tokens(net)
        for scale in (0.5, 0.7, 0.9):
            o = three_linears(net, x)
            x = whole(net, o, between=lambda n, y, c=scale: _biased(n, n.op("Mul", y, c)))
        return x

    proto = proto_of(build)
    plan, _ = found_in(proto)
    assert plan.counts() == {PROJECTION: 3, CORE: 3, "Linear": 3}
    collapsed = assert_collapses(proto, plan)
    assert sorted(f.name for f in collapsed.functions) == ["Linear", PROJECTION, CORE]


def _biased(net: Net, y: str) -> str:
    return net.op("Add", y, net.draw(HEADS, TOKENS, TOKENS))


def test_groups_of_a_shifted_block() -> None:
    block = Block(map=(5, 7), shift=(1, 2))
    proto = proto_of(lambda n: swin(n, block))
    plan, _ = found_in(proto)
    shown = {"window": [2, 3], "shift": [1, 2]}
    layout = shown | {"map": [5, 7], "padding": [1, 2]}
    groups = {g.kind: g for g in plan.groups}
    assert groups["SwinWindowPartition"].details == layout
    assert groups["SwinWindowReverse"].details == layout
    core = groups["SwinAttention"]
    assert core.details == shown | {"head_size": SIZE, "sequence": [6]}
    masks = [_shape(plan, t) for t in core.parameters.values()]
    assert masks == [[1, HEADS, 6, 6], [1, 9, 1, 6, 6]]
    # Layout hands on what it gets; the norm writes what is quantized, the residual is float.
    partition, projection = groups["SwinWindowPartition"], groups[PROJECTION]
    assert partition.inputs == groups["LayerNorm"].outputs
    assert projection.inputs == partition.outputs
    assert core.inputs == projection.outputs
    assert groups["SwinWindowReverse"].inputs == groups["Linear"].outputs
    quantized = [kind for kind, g in groups.items() if g.inputs_to_quantize]
    assert quantized == [PROJECTION, "SwinAttention", "Linear"]
    collapsed = assert_collapses(proto, plan)
    left = [n.op_type for n in collapsed.graph.node if n.domain != DOMAIN]
    assert left == ["Transpose", "Reshape", "Add"]


def test_calls_are_named_after_the_nodes_of_the_file() -> None:
    proto = proto_of(self_attention)
    plan, _ = found_in(proto)
    names = {node.name for node in proto.graph.node}
    assert {group.name for group in plan.groups} <= names
    assert group_of(plan, CORE).name.startswith("Softmax")
    assert group_of(plan, PROJECTION).name.startswith("MatMul")
    # Every node of the file that a group stands for is named, the scale that was folded too.
    held = {origin for group in plan.groups for origin in group.nodes}
    flat = {n for node in plan.model.graph.nodes for n in plan.model.origin(node)}
    assert held <= flat <= names
