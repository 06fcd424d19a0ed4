"""From the plan to the written file, with what proves and measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from fusewright.errors import ModelError, PlanError, UsageError, one_line
from fusewright.graph.convert import to_proto
from fusewright.graph.save import Pending, committed, save
from fusewright.pipeline.balancing import balance
from fusewright.pipeline.equalizing import equalize_parts
from fusewright.pipeline.four_bits import find_int4, round_int4, scale_int4
from fusewright.pipeline.lengths import unseen_lengths
from fusewright.pipeline.levels import start_levels
from fusewright.pipeline.looking import look
from fusewright.pipeline.options import HALF
from fusewright.pipeline.ordering import order_norms
from fusewright.pipeline.prepare import runnable
from fusewright.pipeline.proof import RewriteError
from fusewright.pipeline.provenance import stamp
from fusewright.pipeline.quantizing import set_types
from fusewright.pipeline.result import Result
from fusewright.pipeline.smoothing import smooth
from fusewright.pipeline.stages import (
    Job,
    Seen,
    collapse_float,
    collapsed_proto,
    measure,
    watch_samples,
)
from fusewright.pipeline.trace import peak_memory
from fusewright.plan.file import plan_beside, write_plan
from fusewright.plan.plan import OFF, Group, Plan, Smooth, named
from fusewright.quantize.coarse_angles import leave_coarse_angles, thresholds_of
from fusewright.quantize.cores import core_notes, fit_steps, settle_cores
from fusewright.quantize.int4.sites import Int4Site
from fusewright.quantize.placement import Placement, place
from fusewright.quantize.probabilities import Loss
from fusewright.quantize.residual import stream_tensors
from fusewright.quantize.unseen import leave_unseen
from fusewright.verify import Comparison, with_quantized_weights

if TYPE_CHECKING:
    from fusewright.search import SearchResult

    _Search = Callable[[Plan, list[Group], Seen], tuple[Placement, Seen, SearchResult]]


def finish(
    make: Callable[[], Plan], job: Job, target: Path | None, pending: Pending | None = None
) -> Result:
    """`make`'s plan → rewrites → collapse → [calibrate → types] → verify → write.

    The rewrites: order → cores → smooth → balance → equalize, and what INT4 asks for.

    All rewrites are proven at once, by the last float model; where that does not hold, it begins
    anew and proves stage by stage. An error that they have no part in is final. With `pending` the
    files appear when that is committed.
    """
    job.proof.deferred = not job.proof.by_regions
    try:
        return _through(_made(make, job), job, target, pending)
    except RewriteError as error:
        job.proof.by_stage()
        job.trace.add("load", "note", "proof", detail=f"each stage by itself: {error}")
        return _through(make(), job, target, pending)


def _made(make: Callable[[], Plan], job: Job) -> Plan:
    """The plan; what cleaning made may be behind an error here, and no data was read yet."""
    try:
        return make()
    except ModelError as error:
        if not job.proof.deferred:
            raise
        _ = job.proof.reference  # raises where it was the original that failed
        raise RewriteError(str(error)) from error


@contextmanager
def _as_prepared(plan: Plan) -> Iterator[None]:
    """Groups that a search decided behind the rewrites are to them what they were to it."""
    decided = [(group, group.decision) for group in plan.groups if group.prepared_as is not None]
    for group, _ in decided:
        group.decision = group.prepared_as or group.decision
    yield
    for group, decision in decided:
        group.decision = decision


def _settle_residual(plan: Plan, job: Job) -> None:
    """Sets the tensors of the residual stream that get a pair, as the plan or the options say.

    Raises:
        UsageError: both say it.
        PlanError: the plan names a tensor that can have none.
    """
    asked = job.options.int8_residual
    streams = stream_tensors(plan) if asked or plan.residual else frozenset[str]()
    if plan.residual is None:
        plan.residual = streams
    elif asked:
        raise UsageError(
            "the plan says which tensors of the residual stream are quantized: --int8-residual"
            " cannot be added"
        )
    unknown = plan.residual - streams
    if unknown and any(group.reads_quantized for group in plan.groups):
        raise PlanError(
            f"the plan's `residual` names '{min(unknown)}', which is no tensor of the residual"
            " stream, or is read by no quantized group"
        )


def _through(plan: Plan, job: Job, target: Path | None, pending: Pending | None) -> Result:
    search = _searcher(job, target)
    asked = {group.name: group.smooth for group in plan.groups}
    rewritten = _rewrite(plan, job)
    _settle_residual(plan, job)
    placement = place(plan, plan.residual or ())
    groups, proto = collapse_float(plan, job)
    # Where nothing is deferred it is not looked at.
    collapsed = runnable(proto, job.source) if job.proof.deferred else onnx.ModelProto()

    def prove() -> Comparison:
        return job.proof.compared(collapsed)

    # The proof keeps the core busy that Python, or opening a session, leaves idle.
    with ThreadPoolExecutor(max_workers=1) as side, job.proof.blaming(lambda: collapsed):
        # Not to be seen again, or searched for again, if it fails.
        if job.proof.deferred and (job.samples.come_once or search):
            job.proof.settle(prove)
        seen = watch_samples(plan, placement, job)
        proven = side.submit(prove) if job.proof.deferred else None
        half = searched = at_levels = None
        judged = proto
        if seen is not None:
            placement, seen = _settle_ranges(plan, seen, placement, job)
            round_int4(plan, rewritten.in_four_bits, job)
            if search is not None:
                placement, seen, searched = search(plan, groups, seen)
            typed = set_types(plan, placement, seen, job)
            placement, seen, half = typed.placement, typed.seen, typed.half
            proto = collapsed_proto(plan, groups)
            judged = _in_codes(proto, job)
            at_levels = None if target is None else start_levels(judged, plan, job, side)
        with job.trace.stage("verify") as details:
            final = None if seen is None else measure(judged, half, job)
            if proven is not None:
                job.proof.settle(proven.result)
            if final is not None:
                plan.model.notes += _noted(final, plan, job, at_levels)
            details.append("float" if final is None else str(final.worst))
    found = () if seen is None else seen.notes
    notes = (*plan.model.notes, *job.samples.notes, *found, *rewritten.notes(plan))
    samples = 0 if seen is None else seen.samples
    stamp(proto, job.source.proto, plan, job.options, samples)
    if target is not None:
        with job.trace.stage("write"), committed(pending) as files:
            save(proto, target, job.workspace, files)
            if searched is not None:
                _write_found(plan, asked, target, files)
    return Result(
        light=proto,
        workspace=job.workspace,
        path=target,
        plan=plan,
        placement=placement if placement.weights else None,
        ranges=None if seen is None else seen.ranges,
        half=half,
        proofs=job.proof.results,
        trace=job.trace,
        samples=samples,
        peak_bytes=peak_memory(),
        notes=tuple(map(one_line, notes)),
        search=searched,
        sizes=job.sizes,
    )


def _noted(
    final: Comparison,
    plan: Plan,
    job: Job,
    at_levels: Callable[[Comparison], list[str]] | None,
) -> list[str]:
    """Keeps how far the result is from the original; notes what that does not say."""
    asked_for = job.options.formats.rest if job.options.io_types == HALF else ""
    job.proof.measure("verify", final, asked_for.upper())
    inputs, feeds = job.source.interface.inputs, job.proof.reference.feeds
    notes = unseen_lengths(plan, inputs, feeds)
    return notes if at_levels is None else [*notes, *at_levels(final)]


def _searcher(job: Job, target: Path | None) -> _Search | None:
    """What searches for a placement, where that is asked for."""
    if job.options.search == OFF:
        return None
    # What searches and builds takes a while to import, and most runs do neither.
    from fusewright.pipeline.searching import find_judge, search

    judge = find_judge(job.options, job.sizes)
    return lambda plan, groups, seen: search(plan, groups, seen, job, judge, target)


def _in_codes(proto: onnx.ModelProto, job: Job) -> onnx.ModelProto:
    """The model with its weights in INT8, rounded once for all that open it."""
    folder = job.workspace.folder
    return with_quantized_weights(proto, folder, folder / "codes.weights")


@dataclass(frozen=True)
class _Rewritten:
    """The weights that become INT4, and what became of attention's cores."""

    in_four_bits: list[Int4Site]
    losses: Mapping[str, Loss]
    floated: tuple[str, ...]

    def notes(self, plan: Plan) -> list[str]:
        return core_notes(plan, self.losses, self.floated)


def _settle_ranges(
    plan: Plan, seen: Seen, placement: Placement, job: Job
) -> tuple[Placement, Seen]:
    """Fits steps of probabilities to all samples; what these do not show, or spoil, stays float."""
    left = leave_unseen(plan, seen.empty)
    if left:
        plan.model.notes.append(
            f"{named(left)}: {left[0].reason}, so that it stays float; calibrate on samples that"
            " reach it"
        )
    left += leave_coarse_angles(plan, _thresholds(plan, seen, placement, job))
    fit_steps(plan, seen.probabilities)
    if not left and not seen.probabilities:
        return placement, seen
    fewer = place(plan, plan.residual or ())
    return fewer, seen.placed(fewer, placement)


def _thresholds(plan: Plan, seen: Seen, placement: Placement, job: Job) -> dict[str, float]:
    """Name of each quantized tensor → where it saturates, in front of a search by the rules."""
    if seen.ranges is not None:
        return thresholds_of(placement, seen.ranges)
    if seen.parts is None:
        return {}
    from fusewright.search import Scales

    placed = place(plan, plan.residual or ())
    return thresholds_of(placed, Scales(seen.parts, job.options.calibration).ranges(placed))


def _rewrite(plan: Plan, job: Job) -> _Rewritten:
    """The float rewrites that the plan asks for, in place."""

    def rewritten() -> onnx.ModelProto:
        return runnable(to_proto(plan.model.graph), job.source)

    with _as_prepared(plan), job.proof.blaming(rewritten):
        order_norms(plan, job)
        looked = look(plan, job)
        plan.model.notes += looked.notes
        floated = settle_cores(plan, looked.losses)
        smooth(plan, job, looked.maxima)
        balance(plan, job, looked.maxima)
        equalize_parts(plan, job)
        in_four_bits = find_int4(plan, job)
        scale_int4(plan, in_four_bits, job)
    return _Rewritten(in_four_bits, looked.losses, floated)


def _write_found(
    plan: Plan, asked: Mapping[str, Smooth | None], target: Path, files: Pending
) -> None:
    """The plan file: what was found holds, but α is as it was asked for and is found again."""
    groups = [replace(group, smooth=asked[group.name], asked=True) for group in plan.groups]
    write_plan(replace(plan, groups=groups), plan_beside(target), files)
