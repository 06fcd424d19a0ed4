"""The second half of the road: collapse, calibrate, quantize, each proven or measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx

from fusewright.calibrate import Ranges, Samples, calibrate
from fusewright.errors import ModelError
from fusewright.graph.convert import to_proto
from fusewright.graph.load import Source
from fusewright.graph.save import save
from fusewright.graph.workspace import Workspace
from fusewright.pipeline.options import Options
from fusewright.pipeline.prepare import runnable
from fusewright.pipeline.proof import Proof
from fusewright.pipeline.trace import Trace
from fusewright.plan.collapse import collapse
from fusewright.plan.plan import Group, Plan
from fusewright.quantize.existing import count_qdq
from fusewright.quantize.insert import insert_qdq
from fusewright.quantize.lint import lint
from fusewright.quantize.placement import Placement


@dataclass
class Job:
    """What the stages share.

    Attributes:
        flat: the normalized model as it was proven, where the next proof continues from it.
        workspace: where the weights lie.
    """

    source: Source
    samples: Samples
    options: Options
    trace: Trace
    proof: Proof
    flat: onnx.ModelProto | None = None
    workspace: Workspace = field(default_factory=Workspace)


def collapse_float(plan: Plan, job: Job) -> tuple[list[Group], onnx.ModelProto]:
    """The groups that, collapsed in float, leave the results as they were; and that model."""
    groups = [group for group in plan.groups if group.apply]
    with job.trace.stage("collapse") as details:
        if job.options.flat or not groups:
            return [], to_proto(plan.model.graph)
        proto = to_proto(collapse(plan.model.graph, plan, groups))
        if not _holds(plan, proto, job):
            groups = _without_failing_kinds(plan, groups, job)
            proto = to_proto(collapse(plan.model.graph, plan, groups))
        details.append(f"{len(groups)} calls of {len({group.kind for group in groups})} kinds")
    job.flat = None
    return groups, proto


def _holds(plan: Plan, after: onnx.ModelProto, job: Job, name: str = "") -> bool:
    before = after
    if job.proof.by_regions:
        before = job.flat or to_proto(plan.model.graph)
    return job.proof.holds(
        "collapse", runnable(before, job.source), runnable(after, job.source), name
    )


def _without_failing_kinds(plan: Plan, groups: list[Group], job: Job) -> list[Group]:
    good: list[Group] = []
    for kind in dict.fromkeys(group.kind for group in groups):
        mine = [group for group in groups if group.kind == kind]
        if _holds(plan, to_proto(collapse(plan.model.graph, plan, mine)), job, kind):
            good += mine
        else:
            job.proof.undo("collapse", kind, f"{len(mine)} groups stay flat")
    return good


def measure_ranges(plan: Plan, placement: Placement, job: Job) -> Ranges:
    """Calibrates every scale of the placement on the flat float model."""
    total, limit = job.samples.total, job.options.samples
    expected = limit if total is None else min(total, limit or total)
    with job.trace.stage("calibrate") as details:
        flat = job.workspace.folder / "flat.onnx"
        wanted = dict.fromkeys(name for names in placement.observe.values() for name in names)
        save(with_outputs(runnable(to_proto(plan.model.graph), job.source), wanted), flat)
        ranges = calibrate(
            flat,
            placement.observe,
            job.samples,
            job.options.calibration,
            progress=lambda done: job.trace.watcher.samples(done, expected),
        )
        details.append(f"{len(placement.observe)} scales, {ranges.samples} samples")
    return ranges


def with_outputs(proto: onnx.ModelProto, wanted: Iterable[str]) -> onnx.ModelProto:
    """Makes tensors outputs, in place."""
    known = {v.name for v in (*proto.graph.output, *proto.graph.input)}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in known)
    return proto


def quantize(
    plan: Plan, placement: Placement, ranges: Ranges, groups: list[Group], job: Job
) -> onnx.ModelProto:
    """Inserts the pairs and collapses `groups` around them.

    Raises:
        ModelError: the result breaks a rule of the Q/DQ linter.
    """
    graph = plan.model.graph
    with job.trace.stage("quantize") as details:
        thresholds = {scale: ranges[scale].threshold for scale in placement.observe}
        insert_qdq(graph, placement, thresholds | placement.fixed)
        for violation in lint(graph):
            raise ModelError(f"Q/DQ linter: {violation}; please report this model")
        proto = to_proto(collapse(graph, plan, groups) if groups else graph)
        details.append(f"{count_qdq(proto) // 2} Q/DQ pairs")
    return proto
