"""One look at the channels of some tensors, on the samples that every rewrite is proven on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fusewright.calibrate.channels import observe_channels
from fusewright.graph.convert import to_proto
from fusewright.graph.save import save
from fusewright.pipeline.prepare import runnable
from fusewright.pipeline.stages import Job, with_outputs
from fusewright.plan.plan import AUTO, Plan
from fusewright.quantize.balance import plan_balance
from fusewright.quantize.logits import measure_logits
from fusewright.quantize.poles import watch_divisors
from fusewright.quantize.probabilities import Loss, measure_probabilities
from fusewright.quantize.smooth import Smoothing, plan_smoothing
from fusewright.target.precision import FP32


@dataclass(frozen=True)
class Looked:
    """What was seen.

    Attributes:
        maxima: max|x| per channel of what smoothing and balancing decide by, [channels] each.
        losses: name of each attention → what rounding its probabilities, and its q and k, costs it.
        notes: divisors that come near 0, where something in front of them is rounded.
    """

    maxima: Mapping[str, np.ndarray] = field(default_factory=dict)
    losses: Mapping[str, Loss] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def look(plan: Plan, job: Job) -> Looked:
    """Runs the flat float model on the first samples.

    Raises:
        DataError: the model fails on a sample.
    """
    wanted: dict[str, int] = {}
    if AUTO in (job.options.smooth, *(group.smooth for group in plan.groups)):
        places = [place for place in plan_smoothing(plan) if isinstance(place, Smoothing)]
        wanted |= dict.fromkeys((name for place in places for name in place.observe), 0)
    if job.options.balance:
        sites = plan_balance(plan)
        wanted |= dict.fromkeys((name for site in sites for name in site.observe), 0)
    flat = job.workspace.folder / "flat.onnx"
    proto = runnable(to_proto(plan.model.graph), job.source)
    watched, logits = measure_probabilities(proto, plan), measure_logits(proto, plan)
    wanted |= dict.fromkeys((name for pair in watched.values() for name in pair), 0)
    wanted |= dict.fromkeys(logits.values(), 0)
    is_rounded = job.options.formats.rest != FP32 or any(g.is_quantized for g in plan.groups)
    divisors = watch_divisors(proto, plan.model.graph) if is_rounded else []
    wanted |= dict.fromkeys((name for divisor in divisors for name in divisor.tensors), 0)
    if not wanted:
        return Looked()
    save(with_outputs(proto, wanted), flat)
    feeds = job.samples.preview(job.options.verify_samples)
    seen = observe_channels(flat, wanted, feeds, job.options.calibration).observers
    maxima = {name: observer.maxima for name, observer in seen.items()}
    losses = {
        group: Loss(*(float(maxima.pop(name)[0]) for name in pair))
        for group, pair in watched.items()
    }
    for group, loss in losses.items():
        detail = (
            f"up to {loss.largest:.2g}; its output is off by {loss.error:.2%} in steps of 1/127"
        )
        job.trace.add("plan", "note", "probabilities", group, detail)
    for group, name in logits.items():
        error = float(maxima.pop(name)[0])
        losses[group] = replace(losses.get(group, Loss()), logits=error)
        detail = f"its output is off by {error:.2%} by rounding q and k"
        job.trace.add("plan", "note", "logits", group, detail)
    notes = [note for divisor in divisors if (note := divisor.note(maxima))]
    return Looked(maxima, losses, tuple(notes))
