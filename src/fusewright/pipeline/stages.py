"""The second half of the road: collapse, calibrate, quantize, each proven or measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from fusewright.calibrate import Ranges, Samples
from fusewright.calibrate.loudness import SampleMaxima, loud_notes
from fusewright.calibrate.observers import MaxObserver
from fusewright.calibrate.runner import Observations, begin, watch
from fusewright.calibrate.sameness import SampleVariety, sameness_notes
from fusewright.engine.ranges import ShapeRange
from fusewright.graph.convert import to_proto
from fusewright.graph.load import Source
from fusewright.graph.save import save
from fusewright.graph.workspace import Workspace
from fusewright.pipeline.options import FP32, Options
from fusewright.pipeline.prepare import beyond_reach, runnable
from fusewright.pipeline.proof import Proof
from fusewright.pipeline.trace import Trace
from fusewright.plan.collapse import collapse
from fusewright.plan.plan import OFF, Group, Plan
from fusewright.precision import (
    HalfPlan,
    Probe,
    TensorRanges,
    what_to_measure,
)
from fusewright.precision.check import RangeCheck
from fusewright.precision.twin import rounding_twin
from fusewright.quantize.cores import finer_cores
from fusewright.quantize.placement import Placement
from fusewright.quantize.probabilities import watch_largest
from fusewright.quantize.relent import renamed_scales
from fusewright.verify import Comparison
from fusewright.verify.blockwise import with_emulated_blocks


@dataclass
class Job:
    """What the stages share.

    Attributes:
        flat: the normalized model as it was proven, where the next proof continues from it.
        workspace: where the weights lie.
        sizes: values that the samples hold of inputs that may hold sizes.
    """

    source: Source
    samples: Samples
    options: Options
    trace: Trace
    proof: Proof
    flat: onnx.ModelProto | None = None
    workspace: Workspace = field(default_factory=Workspace)
    sizes: Mapping[str, ShapeRange] = field(default_factory=dict)


def collapse_float(plan: Plan, job: Job) -> tuple[list[Group], onnx.ModelProto]:
    """The groups that, collapsed in float, leave the results as they were; and that model."""
    groups = [group for group in plan.groups if group.apply]
    with job.trace.stage("collapse") as details:
        if job.options.flat or not groups:
            return [], to_proto(plan.model.graph)
        proto = collapsed_proto(plan, groups)
        if not _holds(plan, proto, job):
            groups = _without_failing_kinds(plan, groups, job)
            proto = collapsed_proto(plan, groups)
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
        if _holds(plan, collapsed_proto(plan, mine), job, kind):
            good += mine
        else:
            job.proof.undo("collapse", kind, f"{len(mine)} groups stay flat")
    return good


@dataclass(frozen=True)
class Seen:
    """What the calibration samples showed.

    Attributes:
        ranges: of the scales; None where nothing is quantized.
        tensors: of every float tensor, where the rest is to be half.
        parts: every tensor that some placement may observe, by itself, where one is searched for.
        probabilities: name of each attention whose steps rest on it → its largest probability.
        notes: samples that are far larger than the others.
        empty: tensors to be observed that held no value on any sample.
    """

    ranges: Ranges | None
    tensors: TensorRanges | None
    samples: int
    parts: Observations | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    empty: frozenset[str] = frozenset()

    def placed(self, fewer: Placement, placement: Placement) -> Seen:
        """The same by the scales of a placement with fewer pairs than the one watched for."""
        if self.ranges is None:
            return self
        known = renamed_scales(fewer, placement)
        sites = {scale: self.ranges.sites[old] for scale, old in known.items()}
        return replace(self, ranges=replace(self.ranges, sites=sites))


def _sites_of_a_search(plan: Plan) -> dict[str, tuple[str, ...]]:
    # Imported where it is asked for, like all of the search.
    from fusewright.search import observed

    return {name: (name,) for name in observed(plan)}


def watch_samples(plan: Plan, placement: Placement, job: Job) -> Seen | None:
    """Runs the flat float model on the samples: one pass for scales and half ranges.

    None where the decisions need neither.
    """
    rest = job.options.formats.rest
    if rest == FP32 and not placement.activations and not placement.weights:
        return None
    total, limit = job.samples.total, job.options.samples
    expected = limit if total is None else min(total, limit or total)
    options = replace(job.options.calibration, formats=placement.formats)
    with job.trace.stage("calibrate") as details:
        graph = plan.model.graph
        proto = runnable(to_proto(graph), job.source)
        searches = job.options.search != OFF
        sites = _sites_of_a_search(plan) if searches else placement.observe
        seen, watching = begin(sites, options)
        probe = None if rest == FP32 else Probe(proto, what_to_measure(graph, rest))
        for name, more in ({} if probe is None else probe.watchers).items():
            watching.setdefault(name, []).extend(more)
        largest = watch_largest(proto, finer_cores(plan))
        peaks = {name: MaxObserver() for name in largest.values()}
        watching |= {name: [observer] for name, observer in peaks.items()}
        floats = {spec.name for spec in job.source.interface.inputs if spec.dtype.kind == "f"}
        read = [v.name for v in proto.graph.input if v.name in floats]
        maxima = {name: SampleMaxima() for name in read}
        variety = {name: SampleVariety(job.samples.batch) for name in read}
        if watching:
            for name in read:
                watching.setdefault(name, []).extend((maxima[name], variety[name]))
            flat = job.workspace.folder / "flat.onnx"
            save(with_outputs(proto, watching), flat)
            seen.samples = watch(
                flat,
                watching,
                job.samples,
                options,
                progress=lambda done: job.trace.watcher.samples(done, expected),
            )
        details.append(f"{len(sites)} scales, {seen.samples} samples")
        empty = {name: sites[name] for name in seen.empty}
        ranges = None
        if placement.activations and not searches:
            ranges = seen.without(empty).ranges(options)
        tensors = None if probe is None else probe.ranges(seen.samples)
    found = {group: peaks[name].maximum for group, name in largest.items()}
    notes = (*loud_notes(maxima, job.samples), *sameness_notes(variety))
    return Seen(
        ranges,
        tensors,
        seen.samples,
        seen if searches else None,
        found,
        notes,
        frozenset(name for names in empty.values() for name in names),
    )


def flat_model(plan: Plan, job: Job, wanted: Iterable[str], name: str = "flat") -> Path:
    """The flat model as it is now, with these tensors as outputs, in the workspace."""
    path = job.workspace.folder / f"{name}.onnx"
    proto = runnable(to_proto(plan.model.graph), job.source)
    save(with_outputs(proto, wanted), path)
    return path


def with_outputs(proto: onnx.ModelProto, wanted: Iterable[str]) -> onnx.ModelProto:
    """Makes tensors outputs, in place."""
    known = {v.name for v in (*proto.graph.output, *proto.graph.input)}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in known)
    return proto


def collapsed_proto(plan: Plan, groups: list[Group]) -> onnx.ModelProto:
    """The graph as it is now, with these groups as calls."""
    return to_proto(collapse(plan.model.graph, plan, groups) if groups else plan.model.graph)


def measure(proto: onnx.ModelProto, half: HalfPlan | None, job: Job) -> Comparison:
    """How far the model is from the original; one with half tensors is judged by its twin."""
    final, reference = runnable(proto, job.source), job.proof.reference
    final = with_emulated_blocks(final, job.workspace.folder)
    beyond = beyond_reach(job.source)
    if half is None:
        return reference.compare(final, is_final=True).in_front_of(beyond)
    check = RangeCheck(rounding_twin(final, job.source.interface.half))
    comparison, seen = reference.compare_and_fetch(check.model, check.outputs)
    for name in check.overflows(seen, reference.feeds, job.workspace.folder):
        job.trace.add("verify", "overflow", name, detail=f"beyond {half.kind} on a sample")
    return comparison.in_front_of(beyond)
