"""Attention in INT8: which pairs, where they stand, and when there are none."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from attending import (
    HEADS,
    MEMORY,
    SIZE,
    Operands,
    attend,
    group_of,
    linear,
    packed,
    self_attention,
    split_heads,
    three_linears,
    tokens,
    whole,
)
from building import Net
from pairing import SMALL, planned, quantized, slots, stored_in
from windows import Block, swin

from fusewright.plan.decide import decide
from fusewright.plan.plan import FLOAT, INT8, Plan
from fusewright.quantize.placement import place
from fusewright.target import TENSORRT

PROJECTION, CORE = "MHAInProjection", "ScaledDotProductAttention"


def test_one_pair_on_the_packed_projection_serves_q_k_and_v() -> None:
    made = quantized(self_attention)
    sites = slots(made.placement)
    assert len(sites) == 4, sites
    split = next(n.name for n in made.plan.model.graph.nodes if n.op == "Split")
    (behind,) = [site for site in made.placement.activations if site.readers == ((split, 0),)]
    core = group_of(made.plan, CORE)
    # What decides its range is what the core reads.
    assert made.placement.observe[behind.scale] == tuple(sorted(core.inputs))
    # In the body; its scale is an input of the call, as the weight and the bias are.
    call, body = made.call(PROJECTION), made.body(PROJECTION)
    projection = group_of(made.plan, PROJECTION)
    assert len(call.input) == len(projection.inputs) + len(projection.parameters) + 1
    assert call.input[-1] == f"{behind.scale}_scale"
    ops = [n.op_type for n in body.node if n.op_type != "Constant"]
    assert ops[:5] == ["MatMul", "Add", "QuantizeLinear", "DequantizeLinear", "Split"]
    (q,) = [n for n in body.node if n.op_type == "QuantizeLinear"]
    assert q.input[1] == body.input[len(call.input) - 1]


def test_the_pair_behind_the_softmax_is_fixed_and_inside() -> None:
    made = quantized(self_attention)
    softmax = next(n for n in made.plan.model.graph.nodes if n.op == "Softmax").outputs[0].name
    assert made.placement.fixed == {softmax: 1.0}
    assert softmax not in made.placement.observe
    body = made.body(CORE)
    assert len(made.call(CORE).input) == 3, "no scale from outside"
    ops = [n.op_type for n in body.node if n.op_type != "Constant"]
    assert ops == ["MatMul", "Softmax", "QuantizeLinear", "DequantizeLinear", "MatMul"]
    for node in body.node:
        if node.op_type.endswith("Linear"):
            assert stored_in(body, node.input[1]) == np.float32(1 / 127)
            assert stored_in(body, node.input[2]) == np.int8(0)


def test_pair_on_the_output_stands_behind_the_core() -> None:
    """Between the core and the Linear lies layout: the pair moves up to what attention writes."""
    made = quantized(self_attention)
    core = group_of(made.plan, CORE)
    assert core.outputs[0] in slots(made.placement)
    (reader,) = [n for n in made.proto.graph.node if core.outputs[0] in n.input]
    assert reader.op_type == "QuantizeLinear"


def _layers(count: int, net: Net) -> str:
    x = tokens(net)
    for _ in range(count):
        x = net.op("Add", x, whole(net, three_linears(net, x)))
    return x


def test_names_of_nodes_are_unique_over_all_bodies() -> None:
    """TensorRT's parser names a Q/DQ layer after its node and takes no name twice."""
    made = quantized(lambda n: _layers(3, n))
    inner = [n.name for f in made.proto.functions for n in f.node]
    outer = [n.name for n in made.proto.graph.node]
    assert all(inner)
    assert [name for name, count in Counter(inner + outer).items() if count > 1] == []
    with_pairs = [f for f in made.proto.functions if any("Quantize" in n.op_type for n in f.node)]
    assert len(with_pairs) == 6
    calls = Counter(n.op_type for n in made.proto.graph.node)
    assert {calls[f.name] for f in with_pairs} == {1}
    assert calls["Linear"] == 3


def test_cross_attention() -> None:
    """q has a pair of its own; one serves k and v."""

    def build(net: Net) -> str:
        memory = tokens(net, length=MEMORY, name="memory")
        return whole(net, three_linears(net, tokens(net), memory))

    made = quantized(build)
    names = set(slots(made.placement))
    assert {"x", "memory"} < names
    assert len(names) == 6, names
    assert len(made.call(PROJECTION).input) == 2 + 2 + 2 + 2
    q, k, v = group_of(made.plan, CORE).inputs
    assert sorted(made.placement.observe.values(), key=len)[-1] == tuple(sorted((k, v)))
    assert (q,) in made.placement.observe.values()


def test_swin() -> None:
    """One pair on the norm's output goes through the partition; masks and residual are float."""
    made = quantized(lambda n: swin(n, Block(map=(5, 7), shift=(1, 1))))
    sites = slots(made.placement)
    norm, projection = group_of(made.plan, "LayerNorm"), group_of(made.plan, PROJECTION)
    assert len(sites) == 4, sites
    assert norm.outputs[0] in sites
    assert made.placement.observe[norm.outputs[0]] == projection.inputs
    assert made.plan.model.graph.inputs[0].name not in sites
    core = group_of(made.plan, "SwinAttention")
    assert not set(core.parameters.values()) & set(sites)
    body = made.body("SwinAttention")
    assert sum(n.op_type == "QuantizeLinear" for n in body.node) == 1
    assert all("Quantize" not in n.op_type for n in made.body("SwinWindowPartition").node)


def _cosine(net: Net) -> str:
    x = tokens(net)
    q, k, v = (split_heads(net, linear(net, x)) for _ in range(3))
    q, k = (net.op("LpNormalization", y, axis=-1, p=2) for y in (q, k))
    k = net.op("Transpose", k, perm=[0, 1, 3, 2])
    operands = Operands(q, k, v)
    return whole(net, operands, between=lambda n, y: n.op("Mul", y, n.positive(HEADS, 1, 1)))


def test_cosine_attention() -> None:
    """The pairs of q and k stand behind their norms, right in front of the product."""
    made = quantized(_cosine)
    group = group_of(made.plan, CORE)
    scores = group.interior[0].node
    assert [tuple(slot) for slot in group.interior] == [(scores, 0), (scores, 1)]
    read = [slot for readers in slots(made.placement).values() for slot in readers]
    assert {(scores, 0), (scores, 1)} <= set(read)
    # Their scales are inputs of the call, that of the Softmax is not.
    assert len(made.call(CORE).input) == 3 + 1 + 2
    body = made.body(CORE)
    assert sum(n.op_type == "QuantizeLinear" for n in body.node) == 3
    made_by = {output: n.op_type for n in body.node for output in n.output}
    (product, _) = [n for n in body.node if n.op_type == "MatMul"]
    assert [made_by[name] for name in product.input] == ["DequantizeLinear"] * 2


def _read_in_float(net: Net) -> str:
    return net.op("Exp", net.op("Flatten", attend(net, packed(net, tokens(net)))))


def _is_output(net: Net) -> tuple[str, str]:
    y = attend(net, packed(net, tokens(net)))
    out = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, HEADS * SIZE])
    return linear(net, out), y


@pytest.mark.parametrize("build", [_read_in_float, _is_output], ids=["float reader", "output"])
def test_no_pairs_where_the_output_is_not_read_in_int8(build) -> None:
    plan = planned(build)
    core, projection = group_of(plan, CORE), group_of(plan, PROJECTION)
    assert core.decision == FLOAT
    assert "its output is not read in INT8: pairs on both sides or neither" in core.reason
    assert projection.decision == INT8
    placement = place(plan)
    assert placement.fixed == {}
    assert not set(core.inputs) & set(slots(placement))
    assert "x" in slots(placement)


def _limited(head_size: object, *sequence: object, **largest: int) -> Plan:
    """The decision of TensorRT, on attention of this size; symbols declared up to `largest`."""
    plan = planned(self_attention)
    group_of(plan, CORE).details.update(head_size=head_size, sequence=list(sequence))
    plan.largest.update(largest)
    decide(plan)
    return plan


FUSED = {
    "16": (16, 5),
    "32": (32, 5),
    "64": (64, 5),
    "512 tokens": (64, 512),
    "512 and 77 tokens": (64, 512, 77),
}
NOT_FUSED = {
    "head size 24": ((24, 5), "head size 24: TensorRT fuses INT8 attention of sizes 16, 32, 64"),
    "head size 128": ((128, 5), "head size 128"),
    "unknown head size": ((None, 5), "head size None"),
    "513 tokens": ((64, 513), "a sequence of 513 tokens: TensorRT fuses INT8 attention up to 512"),
    "513 keys": ((64, 5, 513), "a sequence of 513 tokens"),
    "any number of tokens": (
        (64, "length"),
        "a sequence of 'length' tokens, no maximum declared (--shapes): TensorRT fuses INT8",
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_what_the_target_fuses(name: str) -> None:
    assert group_of(_limited(*FUSED[name]), CORE).decision == INT8


@pytest.mark.parametrize("name", NOT_FUSED)
def test_what_the_target_does_not_fuse(name: str) -> None:
    """The core alone stays float: its projection is a Linear like any other."""
    size, reason = NOT_FUSED[name]
    plan = _limited(*size)
    core = group_of(plan, CORE)
    assert core.decision == FLOAT
    assert reason in core.reason
    assert group_of(plan, PROJECTION).decision == INT8
    placement = place(plan)
    assert placement.fixed == {}
    assert not set(core.inputs) & {t for ts in placement.observe.values() for t in ts}


@pytest.mark.parametrize(
    ("dim", "largest", "decision"),
    [
        ("length", 512, INT8),
        ("length", 513, FLOAT),
        ("length + 1", 511, INT8),
        ("length + 1", 512, FLOAT),
        ("2*length", 256, INT8),
    ],
)
def test_declared_maximum_of_a_symbolic_sequence(dim: str, largest: int, decision: str) -> None:
    assert group_of(_limited(64, dim, length=largest), CORE).decision == decision


def test_symbols_of_the_model_itself() -> None:
    """From the input's declared shape to the group's details to the decision."""

    def build(net: Net) -> str:
        return whole(net, three_linears(net, tokens(net, "batch", "length")))

    plan = planned(build)
    core = group_of(plan, CORE)
    assert core.details["sequence"] == ["length"]
    assert core.decision == FLOAT
    plan.largest["length"] = 512
    decide(plan)
    assert core.decision == FLOAT, "TensorRT has no attention of head size 4"
    core.details["head_size"] = 64
    decide(plan)
    assert core.decision == INT8


def test_limits_are_those_of_the_target() -> None:
    assert group_of(planned(self_attention, TENSORRT), CORE).decision == FLOAT
    assert group_of(planned(self_attention, SMALL), CORE).decision == INT8
    limits = replace(SMALL.attention["int8"], sequence=4)
    short = replace(SMALL, attention={"int8": limits})
    assert "fuses INT8 attention up to 4" in group_of(planned(self_attention, short), CORE).reason
