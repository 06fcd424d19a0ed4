"""Projections in front of an attention: which they are, and that AWQ leaves q and k alone."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from quantizing import planned
from smoothing import norm

from fusewright.graph.convert import to_proto
from fusewright.graph.workspace import Workspace
from fusewright.plan.plan import Plan
from fusewright.quantize.int4.blocks import round_to_nearest
from fusewright.quantize.int4.scaling import scale_channels
from fusewright.quantize.int4.sites import Int4Site, int4_sites
from fusewright.quantize.int4.statistics import observe_inputs
from fusewright.quantize.int4.weights import Int4Settings, round_weights

TOKENS, MEMORY, HEADS, SIZE = 6, 10, 2, 32
WIDTH = HEADS * SIZE


def _heads(net: Net, x: str, name: str) -> str:
    y = net.op("Add", net.op("MatMul", x, net.draw(WIDTH, WIDTH), name=name), net.draw(WIDTH))
    return net.op("Transpose", net.op("Reshape", y, [0, 0, HEADS, SIZE]), perm=[0, 2, 1, 3])


def _attention(net: Net, memory: bool) -> str:
    x = norm(net, net.input("x", 2, TOKENS, WIDTH), WIDTH)
    other = norm(net, net.input("memory", 2, MEMORY, WIDTH), WIDTH, name="other") if memory else x
    q = net.op("Mul", _heads(net, x, "q"), SIZE**-0.5)
    k, v = _heads(net, other, "k"), _heads(net, other, "v")
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, WIDTH])
    y = net.op("MatMul", y, net.draw(WIDTH, WIDTH), name="out")
    return net.op("MatMul", norm(net, y, WIDTH, name="last"), net.draw(WIDTH, WIDTH), name="head")


def _sites(plan: Plan) -> list[Int4Site]:
    found = int4_sites(plan, 32, lambda group: group.is_quantized)
    return [site for site in found if isinstance(site, Int4Site)]


def _feeds(memory: bool) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(4)
    shapes = {"x": (2, TOKENS, WIDTH)} | ({"memory": (2, MEMORY, WIDTH)} if memory else {})
    return [
        {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
        for _ in range(8)
    ]


@pytest.mark.parametrize("memory", [False, True], ids=["self", "cross"])
def test_what_makes_the_logits(memory: bool) -> None:
    net = Net(opset=21)
    plan = planned(net, _attention(net, memory))
    found = {site.readers[0][0]: site.makes_logits for site in _sites(plan)}
    assert found["out"] is found["head"] is False
    assert set(found.values()) == {False, True}
    logits = {name for name, makes in found.items() if makes}
    # Packed, all three are one weight; over another memory q is a Linear of its own.
    assert len(logits) == (2 if memory else 1) and "v" not in logits


@pytest.mark.parametrize("memory", [False, True], ids=["self", "cross"])
def test_awq_neither_scales_nor_clips_them(memory: bool) -> None:
    net = Net(opset=21)
    plan = planned(net, _attention(net, memory))
    sites = _sites(plan)
    statistics = observe_inputs(to_proto(plan.model.graph), sites, _feeds(memory))
    scaled = scale_channels(plan, sites, statistics, Workspace())
    assert [s.place.producer for s in scaled.scalings] == ["last"]
    reasons = [skip.reason for skip in scaled.skips]
    assert sum("becomes q and k" in reason for reason in reasons) == (2 if memory else 1)
    tensors = plan.model.graph.tensors()
    floats = {site.tensor: np.array(tensors[site.tensor].values) for site in sites}
    rounded = round_weights(plan.model.graph, sites, Int4Settings("awq"), scaled.statistics)
    scales = plan.model.graph.tensors()
    for weight in rounded:
        plain = round_to_nearest(floats[weight.site.tensor], 32).scales
        same = np.array_equal(scales[f"{weight.site.tensor}_scale"].values, plain)
        assert same is weight.site.makes_logits
