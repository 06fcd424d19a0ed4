"""The stage between plan and collapse: outliers of activations moved into weights, and proven."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.calibrate.channels import ChannelObserver, observe_channels
from fusewright.errors import PlanError
from fusewright.graph.convert import to_proto
from fusewright.graph.walk import peek
from fusewright.pipeline.prepare import runnable
from fusewright.pipeline.stages import Job, flat_model
from fusewright.plan.plan import AUTO, OFF, Plan, Smooth
from fusewright.quantize.alpha import ROWS, choose_alpha
from fusewright.quantize.migrate import Applied, apply_smoothing, row_maxima, smoothing_scale
from fusewright.quantize.smooth import Skip, Smoothing, plan_smoothing

# Samples that a search for α looks at. With 32 a ViT and a Swin on digits and a ViT on MNIST come
# out no worse than with 256 (29.9, 36.0, 35.4 dB; 29.2, 35.8, 35.4).
_LOOKED_AT = 32
# A channel is an outlier from this many times the median on. Of four models without any the
# largest is 6 times, and a search gains them 0.1 dB; outliers of LLMs are 20 to 100 times.
_OUTLIER = 8.0


@dataclass(frozen=True)
class _Decision:
    """What is done at one place: α and s, or why nothing."""

    site: Smoothing
    alpha: float | None
    scale: np.ndarray | None
    reason: str

    @property
    def text(self) -> str:
        if self.scale is None:
            return self.reason
        low, high = float(self.scale.min()), float(self.scale.max())
        return f"α {self.alpha}, s {low:.2g} to {high:.2g}{self.reason}"


def smooth(plan: Plan, job: Job, maxima: Mapping[str, np.ndarray]) -> None:
    """Smooths where the options or the plan ask for it, in place; says so in the groups' `smooth`.

    Args:
        plan: what is quantized.
        job: what is asked for.
        maxima: as `look` finds them; `auto` searches where a channel stands out.

    Raises:
        PlanError: a plan asks for it where it cannot be, or for two things at one tensor.
        DataError: the samples cannot be read twice, or the model fails on one.
        VerifyError: it changed the results, and strict proof was asked for.
    """
    if not any(group.is_quantized for group in plan.groups):
        return
    asked = [job.options.smooth, *(group.smooth for group in plan.groups)]
    if all(setting in (None, OFF) for setting in asked):
        return
    found = plan_smoothing(plan)
    _check_requests(plan, found)
    settings = {
        site.source: _setting(site, plan, job.options.smooth)
        for site in found
        if isinstance(site, Smoothing)
    }
    for skip in found:
        if isinstance(skip, Skip):
            job.trace.add("smooth", "miss", "SmoothQuant", skip.groups[0], skip.reason)
    sites = [s for s in found if isinstance(s, Smoothing) and settings[s.source] != OFF]
    sites = _loud(plan, sites, settings, maxima, job)
    if not sites:
        return
    with job.trace.stage("smooth") as details:
        done = _smooth(plan, sites, settings, job)
        details.append(f"{len(done)} of {len(found)} inputs of quantized Linears")
        alphas = sorted({decision.alpha or 0.0 for decision in done})
        if alphas:
            details.append(f"α {' '.join(map(str, alphas))}")


def _loud(
    plan: Plan,
    sites: Sequence[Smoothing],
    settings: dict[str, Smooth],
    maxima: Mapping[str, np.ndarray],
    job: Job,
) -> list[Smoothing]:
    """The places with an α of the user's, and those to be searched where a channel stands out."""
    loud = []
    for site in sites:
        if settings[site.source] != AUTO:
            loud.append(site)
            continue
        ratio = max(_ratio(maxima[name]) for name in site.observe)
        if ratio >= _OUTLIER:
            loud.append(site)
            continue
        text = f"no channel stands out: at most {ratio:.1f} times the median"
        job.trace.add("smooth", "miss", "SmoothQuant", site.groups[0], text)
        for name in site.groups:
            plan.group(name).smooth = OFF
    return loud


def _ratio(peaks: np.ndarray) -> float:
    alive = peaks[peaks > 0]
    return float(alive.max() / np.median(alive)) if alive.size else 1.0


def _setting(site: Smoothing, plan: Plan, default: Smooth) -> Smooth:
    """What is asked for at a place: of its groups where they say something, else of the run."""
    said = {name: plan.group(name).smooth for name in site.groups}
    given = {name: setting for name, setting in said.items() if setting is not None}
    if len(set(given.values())) > 1:
        pairs = ", ".join(f"'{name}' {setting}" for name, setting in given.items())
        raise PlanError(
            f"groups that read '{site.source}' together ask for different smooth: {pairs}"
        )
    return next(iter(given.values()), default)


def _check_requests(plan: Plan, found: Sequence[Smoothing | Skip]) -> None:
    """An α in a plan is a demand: where there can be none, that is said."""
    places = {name: place for place in found for name in place.groups}
    for group in plan.groups:
        if group.smooth in (None, OFF, AUTO):
            continue
        place = places.get(group.name)
        if not isinstance(place, Smoothing):
            why = "it is no quantized Linear" if place is None else place.reason
            raise PlanError(f"group '{group.name}' cannot be smoothed: {why}")


def _smooth(
    plan: Plan, sites: Sequence[Smoothing], settings: dict[str, Smooth], job: Job
) -> list[_Decision]:
    before = _before(plan, job)
    observers = _observe(plan, sites, settings, job)
    tensors = plan.model.graph.tensors()
    decisions = [
        _decide(site, settings[site.source], observers[site.source], tensors, job) for site in sites
    ]
    wanted = [decision for decision in decisions if decision.scale is not None]
    applied = _apply(plan, wanted, job)
    done = wanted
    if wanted and not _holds(plan, wanted, before, job):
        applied.undo()
        done = _one_by_one(plan, wanted, before, job)
    job.flat = None
    names = {decision.site.source for decision in done}
    for decision in decisions:
        is_done = decision.site.source in names
        what = "match" if is_done else "miss"
        job.trace.add("smooth", what, "SmoothQuant", decision.site.groups[0], decision.text)
        for name in decision.site.groups:
            plan.group(name).smooth = decision.alpha if is_done else OFF
    return done


def _before(plan: Plan, job: Job) -> onnx.ModelProto | None:
    """The model as it is now, for the proof that compares neighbouring stages."""
    if not job.proof.by_regions:
        return None
    return runnable(job.flat or to_proto(plan.model.graph), job.source)


def _observe(
    plan: Plan, sites: Sequence[Smoothing], settings: dict[str, Smooth], job: Job
) -> dict[str, ChannelObserver]:
    """One pass over the samples: what the Linears of each place read."""
    rows = {s.source: ROWS if settings[s.source] == AUTO else 0 for s in sites}
    tensors = {name: rows[site.source] for site in sites for name in site.observe}
    # An α of the user's has no judge but the maxima: those of all samples.
    total, limit = job.samples.total, job.options.samples
    if AUTO in (settings[site.source] for site in sites):
        limit = min(limit or _LOOKED_AT, _LOOKED_AT)
    expected = limit if total is None else min(total, limit or total)
    flat = flat_model(plan, job, tensors)
    seen = observe_channels(
        flat,
        tensors,
        job.samples.preview(limit),
        job.options.calibration,
        progress=lambda feeds: job.trace.watcher.samples(feeds * job.samples.batch, expected),
    ).observers
    for site in sites:
        for other in site.observe[1:]:
            seen[site.observe[0]].merge(seen[other])
    return {site.source: seen[site.observe[0]] for site in sites}


def _decide(
    site: Smoothing,
    setting: Smooth,
    seen: ChannelObserver,
    tensors: dict[str, gs.Tensor],
    job: Job,
) -> _Decision:
    weights = [peek(tensors[name]) for name in site.weights]
    alpha, gain = setting, ""
    if setting == AUTO:
        choice = choose_alpha(seen.halves, weights, job.options.calibration)
        if choice is None:
            return _Decision(site, None, None, "too few samples to judge an α by others")
        if choice.alpha is None:
            return _Decision(site, None, None, "no α lowers the error of the layers")
        alpha, gain = choice.alpha, f", error of the layers {choice.gain_db:.1f} dB lower"
    scale = smoothing_scale(seen.maxima, row_maxima(weights), float(alpha))
    return _Decision(site, float(alpha), scale, gain)


def _apply(plan: Plan, decisions: Iterable[_Decision], job: Job) -> Applied:
    decisions = list(decisions)
    scales = {d.site.source: d.scale for d in decisions if d.scale is not None}
    return apply_smoothing(plan, [d.site for d in decisions], scales, job.workspace)


def _holds(
    plan: Plan,
    decisions: Sequence[_Decision],
    before: onnx.ModelProto | None,
    job: Job,
    name: str = "",
) -> bool:
    after = runnable(to_proto(plan.model.graph), job.source)
    if before is not None:
        # The same names for other values would look like an error there.
        _rename(after, {name for d in decisions for name in d.site.changed})
    return job.proof.holds("smooth", after if before is None else before, after, name)


def _rename(proto: onnx.ModelProto, names: set[str]) -> None:
    for node in proto.graph.node:
        for tensors in (node.input, node.output):
            for i, name in enumerate(tensors):
                if name in names:
                    tensors[i] = f"{name}_smoothed"
    for value in proto.graph.value_info:
        if value.name in names:
            value.name = f"{value.name}_smoothed"


def _one_by_one(
    plan: Plan, decisions: Sequence[_Decision], before: onnx.ModelProto | None, job: Job
) -> list[_Decision]:
    """Each place on top of those that hold; one that does not is undone and named."""
    good: list[_Decision] = []
    for decision in decisions:
        applied = _apply(plan, [decision], job)
        name = decision.site.groups[0]
        if _holds(plan, [*good, decision], before, job, name):
            good.append(decision)
        else:
            applied.undo()
            job.proof.undo("smooth", name, decision.text)
    return good
