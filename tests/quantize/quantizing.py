"""From a small net to its placement, as the pipeline does it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from building import Net

from fusewright.normalize import normalize
from fusewright.plan.decide import Rules, decide
from fusewright.plan.plan import Plan
from fusewright.plan.recognise import recognise
from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE, insert_qdq
from fusewright.quantize.placement import Placement, place

_ALL = Rules()


def planned(net: Net, *outputs: str, rules: Rules = _ALL) -> Plan:
    model = net.model(*outputs)
    normalize(model)
    plan, _ = recognise(model)
    decide(plan, rules)
    return plan


def placed(net: Net, *outputs: str, rules: Rules = _ALL) -> Placement:
    return place(planned(net, *outputs, rules=rules))


def scales(placement: Placement) -> dict[str, str]:
    """Tensor with a pair → name of its scale."""
    assert len({site.tensor for site in placement.activations}) == len(placement.activations)
    return {site.tensor: site.scale for site in placement.activations}


def thresholds(placement: Placement) -> dict[str, float]:
    """A threshold for every scale, no two alike."""
    return {scale: 1.0 + i / 7 for i, scale in enumerate(placement.observe)}


def quantized(net: Net, *outputs: str, rules: Rules = _ALL) -> gs.Graph:
    plan = planned(net, *outputs, rules=rules)
    placement = place(plan)
    insert_qdq(plan.model.graph, placement, thresholds(placement))
    return plan.model.graph


def pairs(graph: gs.Graph) -> list[tuple[gs.Node, gs.Node]]:
    found = [(n.outputs[0].outputs, n) for n in graph.nodes if n.op == QUANTIZE]
    assert all(len(readers) == 1 and readers[0].op == DEQUANTIZE for readers, _ in found)
    return [(q, readers[0]) for readers, q in found]


def node(graph: gs.Graph, op: str) -> gs.Node:
    """The only node of a type."""
    (found,) = [n for n in graph.nodes if n.op == op]
    return found


def scale_of_pair(q: gs.Node) -> np.ndarray:
    array: np.ndarray = q.inputs[1].values
    return array
