"""Weights in INT4: which, scaled as AWQ does before the proof, and rounded behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fusewright.errors import DataError
from fusewright.graph.convert import to_proto
from fusewright.pipeline.prepare import runnable
from fusewright.pipeline.stages import Job, flat_model
from fusewright.plan.plan import FLOAT, Plan
from fusewright.quantize.int4.scaling import scale_channels
from fusewright.quantize.int4.sites import Int4Site, Kept, int4_sites
from fusewright.quantize.int4.statistics import InputStatistics, observe_inputs, plan_passes
from fusewright.quantize.int4.weights import RoundedWeight, round_weights

STAGE = "int4"


def find_int4(plan: Plan, job: Job) -> list[Int4Site]:
    """The weights that become INT4; groups with one that cannot become float, with the reason."""
    sites: list[Int4Site] = []
    for entry in int4_sites(plan):
        if isinstance(entry, Int4Site):
            sites.append(entry)
            continue
        _keep_float(plan, entry, job)
    kept = {name for site in sites for name in site.groups if plan.group(name).decision == FLOAT}
    return [site for site in sites if not kept.intersection(site.groups)]


def _keep_float(plan: Plan, entry: Kept, job: Job) -> None:
    for name in entry.groups:
        group = plan.group(name)
        group.decision, group.reason = FLOAT, entry.reason
        job.trace.add(STAGE, "miss", "INT4", name, entry.reason)


def scale_int4(plan: Plan, sites: Sequence[Int4Site], job: Job) -> None:
    """Moves s between the channels of INT4 weights and what feeds them, in place.

    Raises:
        DataError: the samples cannot be read twice, or the model fails on one.
        VerifyError: it changed the results, and strict proof was asked for.
    """
    if not sites or not job.options.int4.scales_channels:
        return
    with job.trace.stage(STAGE) as details:
        count = 0
        for part, seen in _observed(plan, sites, job):
            scaled = scale_channels(plan, part, seen, job.workspace)
            after = runnable(to_proto(plan.model.graph), job.source)
            if not job.proof.holds(STAGE, after, after):
                scaled.applied.undo()
                job.proof.undo(STAGE, "AWQ", f"{len(part)} weights keep their channels")
                continue
            for skip in scaled.skips:
                job.trace.add(STAGE, "miss", "AWQ", skip.groups[0], skip.reason)
            count += sum(scaling.alpha > 0 for scaling in scaled.scalings)
        details.append(f"{count} inputs scaled")


def round_int4(plan: Plan, sites: Sequence[Int4Site], job: Job) -> None:
    """Rounds the weights, in place, before any Q/DQ pair is inserted."""
    if not sites:
        return
    settings = job.options.int4
    with job.trace.stage(STAGE) as details:
        rounded: list[RoundedWeight] = []
        if settings.needs_statistics:
            for part, seen in _observed(plan, sites, job):
                rounded += round_weights(plan.model.graph, part, settings, seen)
        else:
            rounded += round_weights(plan.model.graph, sites, settings)
        for weight in rounded:
            detail = f"{weight.sqnr_db:.1f} dB, blocks of {weight.site.block}"
            job.trace.add(STAGE, "match", weight.site.groups[0], weight.site.tensor, detail)
        details.append(f"{len(rounded)} weights by {settings.method}")


def _observed(
    plan: Plan, sites: Sequence[Int4Site], job: Job
) -> Iterator[tuple[Sequence[Int4Site], dict[str, InputStatistics]]]:
    """Parts of the sites, with what they multiply in the model as it was before the first."""
    if job.samples.come_once:
        raise DataError(
            f"INT4 by {job.options.int4.method} reads the samples more than once, and these come"
            " once: give a file or folder, or --int4-method rtn"
        )
    wanted = dict.fromkeys(name for site in sites for name in site.reads)
    flat = flat_model(plan, job, wanted, "float")
    for part in plan_passes(sites):
        yield part, observe_inputs(flat, part, job.samples, job.options.calibration)
