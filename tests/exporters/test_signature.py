"""The signature: what it does not see, and what it must."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from signature import signature

import fusewright
from fusewright.plan.plan import Group, Plan
from fusewright.quantize.placement import Placement, Site, place

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("digits_vit", "digits_swin")


def _renamed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Every node and inner tensor under another name, the nodes in another order."""
    graph = proto.graph
    kept = {value.name for value in (*graph.input, *graph.output)}

    def new(name: str) -> str:
        return name if not name or name in kept else f"another {name[::-1]}"

    for node in graph.node:
        node.name = new(node.name)
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    del graph.value_info[:]
    nodes, done = list(graph.node), {*kept, *(t.name for t in graph.initializer), ""}
    del graph.node[:]
    while nodes:  # the last that is ready goes first
        ready = max(i for i, node in enumerate(nodes) if done.issuperset(node.input))
        done.update(nodes[ready].output)
        graph.node.append(nodes.pop(ready))
    return proto


@pytest.mark.parametrize("name", MODELS)
def test_names_and_order_do_not_matter(name: str, tmp_path: Path) -> None:
    path = ROOT / "models" / f"{name}.onnx"
    onnx.save(_renamed(onnx.load(path)), tmp_path / "renamed.onnx")
    plan, other = fusewright.inspect(path), fusewright.inspect(tmp_path / "renamed.onnx")
    assert not {g.name for g in plan.groups} & {g.name for g in other.groups}
    assert signature(plan) == signature(other)


def _of(plan: Plan, kind: str) -> int:
    return next(i for i, group in enumerate(plan.groups) if group.kind == kind)


def _without(plan: Plan) -> None:
    del plan.groups[_of(plan, "LayerNorm")]


def _float(plan: Plan) -> None:
    plan.groups[_of(plan, "LinearAct")].decision = "float"


def _change(kind: str, edit: Callable[[Group], Group]) -> Callable[[Plan], None]:
    def change(plan: Plan) -> None:
        i = _of(plan, kind)
        plan.groups[i] = edit(plan.groups[i])

    return change


CORE = "SwinAttention"
CHANGES = {
    "a group fewer": _without,
    "a group in float": _float,
    "another shift": _change(
        "SwinWindowPartition", lambda g: replace(g, details=g.details | {"shift": [1, 1]})
    ),
    "no pair behind the Softmax": _change(CORE, lambda g: replace(g, fixed=())),
    "no pair on v": _change(CORE, lambda g: replace(g, inputs_to_quantize=(0, 1))),
    "q and k changed places": _change(
        CORE, lambda g: replace(g, inputs=(g.inputs[1], g.inputs[0], *g.inputs[2:]))
    ),
    "a result fewer": _change("MHAInProjection", lambda g: replace(g, outputs=g.outputs[:2])),
    "a bias that is no parameter": _change(
        "Linear", lambda g: replace(g, parameters={"w": g.parameters["w"]})
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_difference_shows(change: Callable[[Plan], None]) -> None:
    path = ROOT / "models" / "digits_swin.onnx"
    plan, other = fusewright.inspect(path), fusewright.inspect(path)
    change(other)
    assert signature(plan) != signature(other)


@pytest.fixture
def vit() -> Plan:
    return fusewright.inspect(ROOT / "models" / "digits_vit.onnx")


def _placed(plan: Plan, placement: Placement, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("signature.place", lambda _: placement)
    return signature(plan)


def test_one_scale_for_all_shows(vit: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    placement, before = place(vit), signature(vit)
    sites = tuple(replace(site, scale="one") for site in placement.activations)
    assert _placed(vit, replace(placement, activations=sites), monkeypatch) != before


def test_a_pair_each_for_q_k_and_v_shows(vit: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the layout, where one on the packed projection served all three."""
    placement, before = place(vit), signature(vit)
    core = vit.groups[_of(vit, "ScaledDotProductAttention")]
    members = next(g.members for g in vit.groups if core.inputs[0] in g.outputs)
    packed = next(s for s in placement.activations if s.readers[0][0] in members[1:])
    nodes = {node.name: node for node in vit.model.graph.nodes}
    own = [
        Site(tensor, ((member, i),), tensor)
        for tensor in core.inputs[:3]
        for member in core.members
        for i, read in enumerate(nodes[member].inputs)
        if read.name == tensor
    ]
    kept = [site for site in placement.activations if site is not packed]
    after = _placed(vit, replace(placement, activations=(*kept, *own)), monkeypatch)
    assert len(after) == len(before) + 2


def test_a_pair_that_is_missing_is_an_error(vit: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    placement = place(vit)
    with pytest.raises(AssertionError, match="wants a pair and has none"):
        _placed(vit, replace(placement, activations=placement.activations[:-1]), monkeypatch)
