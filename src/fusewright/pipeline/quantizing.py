"""Setting the types: Q/DQ pairs, half for the rest, and the linter's word on the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import onnx_graphsurgeon as gs

from fusewright.errors import ModelError
from fusewright.graph.older import PLAIN_PAIRS_OPSET, means_the_same_at, set_opset
from fusewright.graph.snapshot import Snapshot
from fusewright.pipeline.options import HALF
from fusewright.pipeline.stages import Job, Seen
from fusewright.plan.plan import Group, Plan, named
from fusewright.precision import HalfOptions, HalfPlan, TensorRanges, apply_half, plan_half
from fusewright.quantize.between import kept_float
from fusewright.quantize.blockwise.insert import insert_blocks
from fusewright.quantize.fence import fence, has_pairs
from fusewright.quantize.insert import insert_qdq
from fusewright.quantize.lint import lint
from fusewright.quantize.placement import Placement, place
from fusewright.quantize.relent import relent
from fusewright.quantize.tied import share_tables
from fusewright.target import FORMATS

# A round takes the groups at fault; what is still refused then takes all others with it.
_ROUNDS = 4
_APART = "onnxruntime's optimizer would break the pairs, or what is in front of them"


@dataclass(frozen=True)
class Typed:
    """What a plan's graph has become.

    Attributes:
        placement: of the pairs that it has.
        seen: with the ranges of these.
        half: what became half; None where the rest is FP32.
    """

    placement: Placement
    seen: Seen
    half: HalfPlan | None


def set_types(plan: Plan, placement: Placement, seen: Seen, job: Job) -> Typed:
    """Q/DQ pairs, and then half for the rest where that is asked for; in place.

    What the Q/DQ linter refuses becomes float, with the reason in the plan and a note: a model
    must not fail for a fault of ours.

    Raises:
        ModelError: the linter refuses the result, and strict proof was asked for.
    """
    graph = plan.model.graph
    for number in count(1):
        before = Snapshot(graph)
        half = _typed(plan, placement, seen, job)
        found = lint(graph)
        if not found:
            break
        given_up = [] if job.options.strict else relent(plan, found, wholly=number > _ROUNDS)
        if not given_up:
            raise ModelError(f"Q/DQ linter: {found[0].text}; please report this model")
        before.restore()
        _tell(given_up, plan, job)
        fewer = place(plan, plan.residual or ())
        seen, placement = seen.placed(fewer, placement), fewer
    _note(half, job)
    _keep_from_optimizer(graph, job)
    return Typed(placement, seen, half)


def _typed(plan: Plan, placement: Placement, seen: Seen, job: Job) -> HalfPlan | None:
    graph, half = plan.model.graph, None
    found = {} if seen.ranges is None else seen.ranges.sites
    thresholds = {scale: found[scale].threshold for scale in placement.observe}
    if placement.activations or placement.weights:
        with job.trace.stage("quantize") as details:
            insert_qdq(graph, placement, thresholds | placement.fixed)
            details.append(f"{len(placement.activations) + len(placement.weights)} Q/DQ pairs")
    if seen.tensors is not None:
        with job.trace.stage("precision") as details:
            half = _set_half(plan, seen.tensors, job)
            details.append(f"{len(half.half_nodes)} nodes in {half.kind}")
            details += [f"{len(half.float_nodes)} stay fp32"] * bool(half.float_nodes)
    blocked = [weight for weight in placement.weights if FORMATS[weight.format].block is not None]
    if blocked:
        with job.trace.stage("blocks") as details:
            insert_blocks(graph, placement, thresholds)
            details.append(f"{len(blocked)} weights")
    # A new list: trials of a search share the old one.
    notes = dict.fromkeys((*plan.model.notes, *share_tables(graph, job.workspace)))
    plan.model.notes = list(notes)
    return half


def _set_half(plan: Plan, tensors: TensorRanges, job: Job) -> HalfPlan:
    options = HalfOptions(
        job.options.io_types == HALF,
        frozenset(plan.model.frozen),
        kept=kept_float(plan),
        sizes=plan.largest,
    )
    half = plan_half(plan.model.graph, tensors, job.options.formats.rest, options)
    apply_half(plan.model.graph, half, job.workspace)
    return half


def _tell(groups: Sequence[Group], plan: Plan, job: Job) -> None:
    for group in groups:
        job.trace.add("quantize", "miss", group.kind, group.name, group.reason)
    plan.model.notes.append(f"{named(groups)}: {groups[0].reason}; please report this model")


def _note(half: HalfPlan | None, job: Job) -> None:
    if half is None:
        return
    for node, why in half.float_nodes.items():
        job.trace.add("precision", "note", "fp32", node, why)
    for place_of, what in half.rewritten().items():
        job.trace.add("precision", "note", "rewrite", place_of, what)


def _keep_from_optimizer(graph: gs.Graph, job: Job) -> None:
    """Writes the result in a form that onnxruntime's optimizer leaves as it is, in place."""
    opset, older = int(graph.opset), PLAIN_PAIRS_OPSET
    if opset > older and has_pairs(graph) and means_the_same_at(graph, older):
        set_opset(graph, older)
        job.trace.add("quantize", "note", "opset", detail=f"{opset} → {older}: {_APART}")
    for tensor in fence(graph):
        job.trace.add("quantize", "note", "kept apart", tensor, _APART)
