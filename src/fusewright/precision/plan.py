"""Deciding what becomes half: which nodes stay float32 and why, which stored numbers change."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import onnx_graphsurgeon as gs

from fusewright.errors import ModelError
from fusewright.precision.constants import Bounds, judge
from fusewright.precision.cut import float_nodes
from fusewright.precision.flow import Flow, Slot
from fusewright.precision.kinds import KINDS
from fusewright.precision.magnitude import Tolerances, ill_held
from fusewright.precision.masks import masked_tensors
from fusewright.precision.meaning import spoiled
from fusewright.precision.measure import MARGIN
from fusewright.precision.ranges import TensorRanges
from fusewright.precision.types import DEQUANTIZE, QUANTIZE
from fusewright.precision.undivided import spread, undivided
from fusewright.target.formats import HALF_SCALES_OPSET
from fusewright.target.table import WITHOUT_HALF

SPARES = "spares a Cast between float32 nodes"


@dataclass(frozen=True)
class HalfOptions:
    """How to decide.

    Attributes:
        io_half: the model's float32 inputs and outputs become half too.
        frozen: names of nodes that may not be touched: custom operators and what follows them.
        margin: how many times larger than measured values may get on other data.
        kept: names of nodes that have to stay float32 → why.
        sizes: the declared maximum of symbolic dimensions.
    """

    io_half: bool = False
    frozen: frozenset[str] = frozenset()
    margin: float = MARGIN
    kept: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class HalfPlan:
    """What becomes half.

    Attributes:
        kind: "fp16" or "bf16".
        float_nodes: name of each node that could be half by its operator and stays float32 → why.
        rewrites: reads of stored tensors, as (node, position), that get other magnitudes.
        half_nodes: names of the nodes that become half.
        io_half: the interface too.
        frozen: nodes that are not touched.
    """

    kind: str
    float_nodes: Mapping[str, str]
    rewrites: Mapping[Slot, Bounds]
    half_nodes: frozenset[str]
    io_half: bool = False
    frozen: frozenset[str] = field(default=frozenset())

    def lines(self) -> list[str]:
        """One text line for each node kept float32 and each rewritten read."""
        kept = [f"{name}: float32, {why}" for name, why in self.float_nodes.items()]
        return kept + [f"{place}: {what}" for place, what in self.rewritten().items()]

    def rewritten(self) -> dict[str, str]:
        """Each rewritten read as `node:position` → how and why."""
        return {
            f"{name}:{i}": f"magnitudes from {b.lowest:.3g} to {b.highest:.6g}, {b.why}"
            for (name, i), b in self.rewrites.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for the report."""
        return {
            "kind": self.kind,
            "half_nodes": len(self.half_nodes),
            "float_nodes": dict(self.float_nodes),
            "rewrites": [
                {"node": name, "input": i, "lowest": b.lowest, "highest": b.highest, "why": b.why}
                for (name, i), b in self.rewrites.items()
            ],
        }


def plan_half(
    graph: gs.Graph,
    ranges: TensorRanges,
    kind: str,
    options: HalfOptions = HalfOptions(),
) -> HalfPlan:
    """Decides which float32 nodes of a flat graph become half.

    Args:
        graph: with its Q/DQ pairs, if it is to have any, their scales float32; it is not changed.
        ranges: of its tensors, from `measure` with the same `kind`.
        kind: "fp16" or "bf16".

    Raises:
        ModelError: the graph has Q/DQ pairs and its opset has no half scales.
    """
    _check_opset(graph, kind)
    flow = Flow(graph, KINDS[kind], ranges, options.frozen)
    regions = undivided(flow)
    forced, rewrites = _forced(flow, options)
    forced = spread(forced, regions)
    kept = float_nodes(flow, forced, options.io_half, regions)
    able = [node.name for node in graph.nodes if flow.slots(node).follows]
    return HalfPlan(
        kind,
        {name: forced.get(name, SPARES) for name in able if name in kept},
        {slot: bounds for slot, bounds in rewrites.items() if slot[0] not in kept},
        frozenset(able) - kept,
        options.io_half,
        options.frozen,
    )


def _forced(flow: Flow, options: HalfOptions) -> tuple[dict[str, str], Mapping[Slot, Bounds]]:
    """Nodes that must be float32, and the reads that are rewritten so that others need not."""
    tolerances = Tolerances(flow)
    verdict = judge(flow, tolerances)
    missing = {n.name: n.op for n in flow.graph.nodes if n.op in WITHOUT_HALF[flow.kind.name]}
    engine = {name: f"TensorRT has no {flow.kind.title} {op}" for name, op in missing.items()}
    meant = spoiled(flow, options.margin, options.sizes)
    forced = {**options.kept, **engine, **verdict.reasons, **meant}
    masked: Set[int] = masked_tensors(flow, flow.ranges.masks)
    found = ill_held(flow, tolerances, masked, options.margin)
    for node in flow.graph.nodes:
        slots = flow.slots(node)
        tensors = [node.outputs[i] for i in slots.outputs] + [node.inputs[i] for i in slots.inputs]
        why = next((found[id(t)] for t in tensors if id(t) in found), None)
        if why is not None:
            forced.setdefault(node.name, why)
    return forced, verdict.rewrites


def _check_opset(graph: gs.Graph, kind: str) -> None:
    pairs = next((n for n in graph.nodes if n.op in (QUANTIZE, DEQUANTIZE)), None)
    if pairs is not None and int(graph.opset) < HALF_SCALES_OPSET:
        raise ModelError(
            f"opset {graph.opset} has no {KINDS[kind].title} scales, which '{pairs.name}' needs:"
            f" raise it to {HALF_SCALES_OPSET}"
        )
