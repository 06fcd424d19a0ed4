"""Tests derived from the catalogue: what a pattern describes it matches, and nothing beside it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from instances import Instance, instances

from fusewright.groups import CATALOGUE, KINDS, GroupKind
from fusewright.match.pattern import COMMUTATIVE
from fusewright.plan.recognise import recognise

# Where a group is grown from its pattern, the pattern alone is not one: attention has own tests.
_WHOLE = [kind for kind in CATALOGUE if kind.grow is None]
EACH_KIND = pytest.mark.parametrize("kind", _WHOLE, ids=[kind.kind for kind in _WHOLE])


def _covers(kind: GroupKind, instance: Instance) -> bool:
    """Whether one group of `kind` holds every node of the instance."""
    plan, _ = recognise(instance.model(), catalogue=(kind,))
    wanted = {node.name for node in instance.nodes}
    return any(set(group.members) == wanted for group in plan.groups)


def _has(kind: GroupKind, instance: Instance, node: gs.Node) -> bool:
    plan, _ = recognise(instance.model(), catalogue=(kind,))
    return any(node.name in group.members for group in plan.groups)


@EACH_KIND
def test_every_instance_matches(kind: GroupKind) -> None:
    count = 0
    for instance in instances(kind.pattern, all_types=True):
        assert _covers(kind, instance), str(instance)
        count += 1
    # BN or not, bias or not; a Linear has no BN.
    small = {"ConvBN": 4, "ConvBNAdd": 4, "Linear": 2, "AdaptiveAvgPool": 1}
    # The operator with its parameters or without, or the chain with them or without.
    small |= {"LayerNorm": 2 + 4, "RMSNorm": 1 + 2 * 2, "GroupNorm": 1 + 2 * 4}
    assert count >= 20 if kind.kind not in small else count == small[kind.kind]


@EACH_KIND
def test_another_operator_does_not(kind: GroupKind) -> None:
    for instance in instances(kind.pattern):
        text = str(instance)
        for node in instance.nodes:
            op, node.op = node.op, "Round"
            assert not _has(kind, instance, node), f"{text} with Round for {op}"
            node.op = op


@EACH_KIND
def test_operator_of_another_domain_does_not(kind: GroupKind) -> None:
    for instance in instances(kind.pattern):
        for node in instance.nodes:
            node.domain = "com.microsoft"
            assert not _has(kind, instance, node), f"{instance}, {node.op} of com.microsoft"
            node.domain = None


@EACH_KIND
def test_interior_value_read_elsewhere_does_not(kind: GroupKind) -> None:
    for instance in instances(kind.pattern):
        interior = [(node, t) for node in instance.nodes[:-1] for t in node.outputs]
        for node, tensor in interior:
            reader = gs.Node("Neg", "reader", {}, [tensor], [gs.Variable("leak")])
            assert not _covers(kind, instance), f"{instance}, {node.op} read elsewhere"
            reader.inputs.clear()


@EACH_KIND
def test_interior_value_that_is_an_output_does_not(kind: GroupKind) -> None:
    for instance in instances(kind.pattern):
        for node in instance.nodes[:-1]:
            model = instance.model()
            model.graph.outputs = [*model.graph.outputs, node.outputs[0]]
            plan, _ = recognise(model, catalogue=(kind,))
            whole = {n.name for n in instance.nodes}
            assert all(set(g.members) != whole for g in plan.groups), f"{instance}, {node.op}"


@EACH_KIND
def test_operand_order(kind: GroupKind) -> None:
    """Free where the operator commutes, fixed where it does not."""
    for instance in instances(kind.pattern):
        for node in instance.nodes:
            if len(node.inputs) < 2 or node.inputs[1].is_empty():
                continue
            _swap(node)
            if node.op in COMMUTATIVE:
                assert _covers(kind, instance), f"{instance}, {node.op} swapped"
            elif any(isinstance(t, gs.Constant) for t in node.inputs[:2]):
                assert not _has(kind, instance, node), f"{instance}, {node.op} swapped"
            _swap(node)


@EACH_KIND
def test_another_number_does_not(kind: GroupKind) -> None:
    for instance in instances(kind.pattern):
        for number in instance.numbers:
            kept = number.values
            number.values = np.float32(kept * 1.01 or 0.01)
            assert not _covers(kind, instance), f"{instance} with {number.values} for {kept}"
            number.values = np.full((1, 1), kept, np.float32)
            assert _covers(kind, instance), f"{instance} with {kept} of rank 2"
            number.values = kept


@EACH_KIND
def test_computed_parameter_does_not(kind: GroupKind) -> None:
    for instance in instances(kind.pattern):
        text = str(instance)
        for node in instance.nodes:
            for i, tensor in enumerate(node.inputs):
                if not isinstance(tensor, gs.Constant):
                    continue
                node.inputs[i] = gs.Variable("computed", dtype=np.float32)
                # In a GELU, tanh(…) + 1 with another 1 is an ActAdd of its own.
                inner = kind.kind == "ActAdd" and "Tanh" in text
                found = _covers(kind, instance) if inner else _has(kind, instance, node)
                assert not found, f"{instance}, input {i} of {node.op}"
                node.inputs[i] = tensor


@pytest.mark.parametrize("name", ["ConvBN", "Linear"])
def test_smallest_form_is_one_node(name: str) -> None:
    assert min(len(i.nodes) for i in instances(KINDS[name].pattern)) == 1


def _swap(node: gs.Node) -> None:
    first, second = node.inputs[:2]
    # By way of a placeholder: graphsurgeon's lists keep the tensors' own in step.
    node.inputs[0] = gs.Variable("placeholder")
    node.inputs[1], node.inputs[0] = first, second
