"""The whole job: load → clean → normalize → recognise → plan → calibrate → quantize → collapse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.calibrate import RandomSamples, Ranges, Samples, calibrate, open_samples
from fusewright.engine.profiles import check_shapes
from fusewright.errors import DataError, ModelError, PlanError
from fusewright.graph.convert import to_proto
from fusewright.graph.load import Source, fingerprint, read_source
from fusewright.graph.save import check_output, save
from fusewright.normalize import RULES
from fusewright.normalize.linear import POOL_HEAD
from fusewright.pipeline.options import Options
from fusewright.pipeline.prepare import Preparation, is_plain, plain, runnable
from fusewright.pipeline.proof import WHOLE_UP_TO, Proof
from fusewright.pipeline.provenance import stamp
from fusewright.pipeline.result import Result
from fusewright.pipeline.trace import Silent, Trace, Watcher, peak_memory
from fusewright.plan.collapse import collapse
from fusewright.plan.decide import decide
from fusewright.plan.file import apply_plan_file
from fusewright.plan.plan import FLOAT, Group, Plan
from fusewright.plan.recognise import recognise
from fusewright.quantize.insert import count_qdq, insert_qdq
from fusewright.quantize.lint import lint
from fusewright.quantize.placement import Placement, place
from fusewright.verify import Reference


@dataclass
class Job:
    """What the stages share."""

    source: Source
    samples: Samples
    options: Options
    trace: Trace
    proof: Proof


def optimize(
    model: str | Path,
    out: str | Path | None = None,
    calibration: Any = None,
    watcher: Watcher | None = None,
    **settings: Any,
) -> Result:
    """Takes an ONNX file to a verified, quantized one.

    Args:
        model: the input file; it is never written to.
        out: where to write; None leaves the result in `Result.model` only.
        calibration: what `open_samples` takes: a path, `module:name`, a dict of arrays, an
            iterable of dicts, a reader, or `RandomSamples()`.
        watcher: told of progress.
        **settings: fields of `Options`.

    Raises:
        FusewrightError: with one line that names the culprit; nothing is written then.
    """
    options = Options().with_settings(settings)
    source = read_source(model)
    target = _target(out, source)
    refuse_quantized(source)
    job = start_job(source, calibration, options, Trace(watcher or Silent()))
    plan = make_plan(source, options, job.trace, job.proof)
    return finish(plan, job, target)


def apply(
    plan: Plan,
    out: str | Path | None = None,
    calibration: Any = None,
    watcher: Watcher | None = None,
    **settings: Any,
) -> Result:
    """Applies a plan from `inspect`, with the decisions and groups as they are now.

    Without `calibration` the float model is collapsed and nothing is quantized; it is then proven
    on random data. The plan's own graph is not touched.

    Raises:
        FusewrightError: as `optimize`.
    """
    source = read_source(plan.model.path)
    target = _target(out, source)
    refuse_quantized(source)
    if calibration is None:
        settings.setdefault("precision", "fp32")
        calibration = RandomSamples(settings.get("verify_samples", Options.verify_samples))
    options = Options().with_settings(settings)
    job = start_job(source, calibration, options, Trace(watcher or Silent()))
    fresh = make_plan(source, options, job.trace, job.proof)
    if [g.members for g in fresh.groups] != [g.members for g in plan.groups]:
        raise PlanError(f"{source.path}: has changed since the plan was made")
    for mine, theirs in zip(fresh.groups, plan.groups, strict=True):
        mine.decision, mine.reason, mine.apply = theirs.decision, theirs.reason, theirs.apply
    return finish(fresh, job, target)


def start_job(source: Source, calibration: Any, options: Options, trace: Trace) -> Job:
    """Opens the samples and runs the original on the first of them.

    Raises:
        DataError: there is no data, or it does not fit.
        UsageError: declared shapes that do not fit the inputs.
    """
    if calibration is None:
        raise DataError(
            "no calibration data: give --calib DATA, or --random-data where none exists"
        )
    check_shapes(source.interface.inputs, options.shapes)
    with trace.stage("load") as details:
        samples = open_samples(calibration, source.interface.inputs, options.images)
        feeds = samples.take(min(options.verify_samples, options.samples or options.verify_samples))
        large = len(source.names) > WHOLE_UP_TO
        proof = Proof(lambda: _reference(source, feeds), trace, options.strict, by_regions=large)
        if not large:
            _ = proof.reference
        details.append(f"{len(source.names)} nodes, opset {source.opset}")
        if source.custom:
            details.append(f"left alone: {', '.join(source.custom)} and what follows")
    return Job(source, samples, options, trace, proof)


def _reference(source: Source, feeds: list[dict[str, np.ndarray]]) -> Reference:
    original = source.path if is_plain(source) else runnable(plain(source), source)
    return Reference(original, feeds)


def make_plan(source: Source, options: Options, trace: Trace, proof: Proof | None = None) -> Plan:
    """load → clean → normalize → recognise → plan.

    Raises:
        ModelError: the model cannot be handled.
        UsageError: a pattern of the options matches nothing.
        PlanError: the plan file does not fit.
    """
    preparation = Preparation(source, trace, proof)
    model = preparation.run((*RULES, POOL_HEAD) if options.pool_head else RULES)
    model.fingerprint = fingerprint(source.path, source.proto)
    with trace.stage("recognise") as details:
        plan, misses = recognise(model, known_misses=preparation.misses)
        for group in plan.groups:
            trace.add("recognise", "match", group.kind, group.name)
        for miss in misses:
            trace.add("recognise", "miss", miss.pattern, miss.node, str(miss))
        details.append(f"{len(plan.groups)} groups, {len(plan.unclaimed)} heavy ops unclaimed")
    with trace.stage("plan") as details:
        plan.precision = options.precision
        decide(plan, options.rules)
        if options.plan is not None:
            apply_plan_file(plan, options.plan)
        quantized = sum(group.is_quantized for group in plan.groups)
        details.append(f"{quantized} groups in INT8, {len(plan.groups) - quantized} float")
    return plan


def finish(plan: Plan, job: Job, target: Path | None) -> Result:
    """[calibrate → quantize] → collapse → verify → write."""
    if job.options.precision == "fp32":
        for group in plan.groups:
            group.decision, group.reason = FLOAT, "--precision fp32"
    plain_groups = _collapsible(plan, job)
    placement, ranges = place(plan), None
    if placement.activations:
        ranges = _calibrated(plan, placement, job)
    proto = _quantized(plan, placement, ranges, plain_groups, job)
    samples = 0 if ranges is None else ranges.samples
    stamp(proto, job.source.proto, plan, job.options, samples)
    if target is not None:
        with job.trace.stage("write"):
            save(proto, target)
    notes = (*plan.model.notes, *job.samples.notes)
    return Result(
        proto,
        target,
        plan,
        placement if placement.activations else None,
        ranges,
        job.proof.results,
        job.trace,
        samples,
        peak_memory(),
        notes,
    )


def _collapsible(plan: Plan, job: Job) -> list[Group]:
    """The groups that, collapsed in float, leave the results as they were."""
    if job.options.flat:
        return []
    groups = [group for group in plan.groups if group.apply]
    with job.trace.stage("collapse") as details:
        if groups and not _collapse_holds(plan, groups, job):
            groups = _without_failing_kinds(plan, groups, job)
        bodies = {group.kind for group in groups}
        details.append(f"{len(groups)} calls of {len(bodies)} kinds")
    return groups


def _collapse_holds(plan: Plan, groups: list[Group], job: Job, name: str = "") -> bool:
    after = to_proto(collapse(plan.model.graph, plan, groups))
    before = to_proto(plan.model.graph) if job.proof.by_regions else after
    return job.proof.holds(
        "collapse", runnable(before, job.source), runnable(after, job.source), name
    )


def _without_failing_kinds(plan: Plan, groups: list[Group], job: Job) -> list[Group]:
    good: list[Group] = []
    for kind in dict.fromkeys(group.kind for group in groups):
        mine = [group for group in groups if group.kind == kind]
        if _collapse_holds(plan, mine, job, kind):
            good += mine
        else:
            job.proof.undo("collapse", kind, f"{len(mine)} groups stay flat")
    return good


def _calibrated(plan: Plan, placement: Placement, job: Job) -> Ranges:
    total, limit = job.samples.total, job.options.samples
    expected = limit if total is None else min(total, limit or total)
    with job.trace.stage("calibrate") as details, TemporaryDirectory(prefix="fusewright-") as tmp:
        # Through a file: the weights need not be in this process while the samples run.
        flat = Path(tmp) / "flat.onnx"
        save(runnable(to_proto(plan.model.graph), job.source), flat)
        ranges = calibrate(
            flat,
            placement.observe,
            job.samples,
            job.options.calibration,
            progress=lambda done: job.trace.watcher.samples(done, expected),
        )
        details.append(f"{len(placement.observe)} scales, {ranges.samples} samples")
    return ranges


def _quantized(
    plan: Plan, placement: Placement, ranges: Ranges | None, groups: list[Group], job: Job
) -> onnx.ModelProto:
    graph = plan.model.graph
    if ranges is None:
        return _collapsed(graph, plan, groups, job)
    with job.trace.stage("quantize") as details:
        thresholds = {scale: ranges[scale].threshold for scale in placement.observe}
        insert_qdq(graph, placement, thresholds)
        for violation in lint(graph):
            raise ModelError(f"Q/DQ linter: {violation}; please report this model")
        proto = _collapsed(graph, plan, groups, job)
        job.proof.measure("quantize", runnable(proto, job.source))
        details.append(f"{count_qdq(proto) // 2} Q/DQ pairs")
    return proto


def _collapsed(graph: gs.Graph, plan: Plan, groups: list[Group], job: Job) -> onnx.ModelProto:
    return to_proto(graph if job.options.flat else collapse(graph, plan, groups))


def _target(out: str | Path | None, source: Source) -> Path | None:
    if out is None:
        return None
    check_output(Path(out), source.path)
    return Path(out)


def refuse_quantized(source: Source) -> None:
    """Refuses a model that is quantized already.

    Raises:
        ModelError: naming the first quantized node.
    """
    for node, name in zip(source.proto.graph.node, source.names, strict=True):
        if node.op_type in _QUANTIZED_OPS:
            raise ModelError(
                f"{source.path}: is quantized already ({node.op_type} '{name}'); start from the"
                " float model"
            )


_QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)
