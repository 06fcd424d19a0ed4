"""What no Cast may cut: the layout operators between a Q/DQ pair and what reads it in its format.

A Cast among them would stand between the pair and the Conv, MatMul or Concat that it was placed
for, and nothing would be fused. At the pair itself there is none: what reads it in another type
gets a DequantizeLinear of its own.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fusewright.graph.walk import producer
from fusewright.plan.demand import data_inputs
from fusewright.plan.plan import HEAVY_OPS
from fusewright.precision.flow import Flow
from fusewright.precision.types import DEQUANTIZE

Region = tuple[gs.Node, ...]


def undivided(flow: Flow) -> list[Region]:
    """Nodes that are half or float32 together, each group of two or more, in topological order."""
    regions: dict[int, list[gs.Node]] = {}
    behind_pairs: set[int] = set()
    for node in flow.graph.nodes:
        if node.op == DEQUANTIZE:
            behind_pairs.update(id(t) for t in node.outputs)
            continue
        moved = data_inputs(node, flow.opset)
        read = moved or (node.inputs[:2] if node.op in HEAVY_OPS else ())
        sources = [t for t in read if id(t) in behind_pairs]
        if not sources or not flow.slots(node).follows:
            continue
        _join(regions, node, [producer(t) for t in sources])
        if moved:
            behind_pairs.update(id(t) for t in node.outputs)
    found = {id(region): region for region in regions.values() if len(region) > 1}
    return [tuple(region) for region in found.values()]


def _join(regions: dict[int, list[gs.Node]], node: gs.Node, makers: list[gs.Node | None]) -> None:
    """Puts a node into the region of what it reads, which become one; a pair is in none."""
    mine = {id(regions[id(m)]): regions[id(m)] for m in makers if id(m) in regions}
    whole = [member for region in mine.values() for member in region]
    whole.append(node)
    for member in whole:
        regions[id(member)] = whole


def spread(forced: dict[str, str], regions: list[Region]) -> dict[str, str]:
    """`forced` (node kept float32 → why) with what a region shares with the first of its nodes."""
    found = dict(forced)
    for region in regions:
        first = next((node.name for node in region if node.name in forced), None)
        for node in region if first is not None else ():
            found.setdefault(node.name, f"reads one pair with '{first}': {forced[str(first)]}")
    return found
