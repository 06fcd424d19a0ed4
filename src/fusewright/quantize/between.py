"""What lies between the pairs of a quantized attention, and which type it has in a half rest."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from fusewright.graph.layout import region_ahead, region_behind
from fusewright.graph.walk import producer
from fusewright.plan.limits import inside
from fusewright.plan.plan import Plan, node_index
from fusewright.quantize.insert import DEQUANTIZE, QUANTIZE


def kept_float(plan: Plan) -> dict[str, str]:
    """Nodes between the pairs of quantized groups that have to stay FP32 in a half rest → why.

    Args:
        plan: its graph holds the pairs. The layout operators between a pair and the group count: a
            Cast among them would stand between the two, and nothing would be fused.
    """
    nodes, found = node_index(plan.model.graph), dict[str, str]()
    for group in plan.groups:
        why = inside(group, plan)
        if why is None:
            continue
        for name in group.members:
            found[name] = why
            found |= {node.name: why for node in _layout(nodes[name], plan.model.opset)}
    return found


def _layout(node: gs.Node, opset: int) -> Iterator[gs.Node]:
    for tensor in node.inputs:
        region = region_behind([tensor], opset)
        makers = [producer(source) for source in region.sources]
        if all(maker is not None and maker.op == DEQUANTIZE for maker in makers):
            yield from region.nodes
    for tensor in node.outputs:
        region = region_ahead(tensor, opset)
        if all(reader.op == QUANTIZE for result in region.results for reader in result.outputs):
            yield from region.nodes
