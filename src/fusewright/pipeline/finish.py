"""From the plan to the written file, with what proves and measures it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import onnx

from fusewright.errors import DataError, ModelError, VerifyError
from fusewright.graph.save import saving
from fusewright.graph.workspace import embed
from fusewright.pipeline.balancing import balance
from fusewright.pipeline.looking import channel_maxima
from fusewright.pipeline.prepare import runnable
from fusewright.pipeline.provenance import stamp
from fusewright.pipeline.result import Result
from fusewright.pipeline.smoothing import smooth
from fusewright.pipeline.stages import Job, collapse_float, measure_ranges, quantize
from fusewright.pipeline.trace import peak_memory
from fusewright.plan.plan import Plan
from fusewright.quantize.placement import place


def finish(make: Callable[[], Plan], job: Job, target: Path | None) -> Result:
    """`make`'s plan → [smooth → balance] → collapse → [calibrate → quantize] → write.

    All rewrites are proven at once, by the last float model; where that does not hold, it begins
    anew and proves stage by stage.
    """
    job.proof.deferred = not job.proof.by_regions
    try:
        return _through(make(), job, target)
    except (DataError, ModelError, VerifyError) as error:
        if not job.proof.deferred:
            raise
        _ = job.proof.reference  # raises where it was the original that failed
        job.proof.by_stage()
        job.trace.add("load", "note", "proof", detail=f"each stage by itself: {error}")
        return _through(make(), job, target)


def _through(plan: Plan, job: Job, target: Path | None) -> Result:
    maxima = channel_maxima(plan, job)
    smooth(plan, job, maxima)
    balance(plan, job, maxima)
    placement = place(plan, job.options.int8_residual)
    groups, proto = collapse_float(plan, job)
    # Proof and writing keep the core busy that Python, or opening a session, leaves idle.
    with ExitStack() as written, ThreadPoolExecutor(max_workers=2) as side:
        collapsed = runnable(proto, job.source) if job.proof.deferred else None
        if collapsed is not None and job.samples.come_once:  # not to be seen again if it fails
            job.proof.settle(job.proof.reference.compare(collapsed))
            collapsed = None
        ranges = measure_ranges(plan, placement, job) if placement.activations else None
        samples = 0 if ranges is None else ranges.samples
        proven = side.submit(job.proof.reference.compare, collapsed) if collapsed else None
        if ranges is not None:
            proto = quantize(plan, placement, ranges, groups, job)

        def write() -> onnx.ModelProto:
            whole = onnx.ModelProto()
            whole.CopyFrom(proto)
            embed(whole, job.workspace)
            stamp(whole, job.source.proto, plan, job.options, samples)
            if target is not None:
                written.enter_context(saving(whole, target))
            return whole

        writing = side.submit(write)
        with job.trace.stage("verify") as details:
            if ranges is not None:
                final = runnable(proto, job.source)
                accuracy = job.proof.reference.compare(final, fold_weights=True)
            if proven is not None:
                job.proof.settle(proven.result())
            if ranges is not None:
                job.proof.measure("quantize", accuracy)
            details.append("quantized, " + str(accuracy.worst) if ranges else "float")
        whole = writing.result()
        if target is not None:
            with job.trace.stage("write"):
                written.close()
    return Result(
        whole,
        target,
        plan,
        placement if placement.activations else None,
        ranges,
        job.proof.results,
        job.trace,
        samples,
        peak_memory(),
        (*plan.model.notes, *job.samples.notes),
    )
