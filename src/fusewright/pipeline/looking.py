"""One look at the channels of some tensors, on the samples that every rewrite is proven on."""

from __future__ import annotations

import numpy as np

from fusewright.calibrate.channels import observe_channels
from fusewright.pipeline.stages import Job, flat_model
from fusewright.plan.plan import AUTO, Plan
from fusewright.quantize.balance import plan_balance
from fusewright.quantize.smooth import Smoothing, plan_smoothing


def channel_maxima(plan: Plan, job: Job) -> dict[str, np.ndarray]:
    """max|x| per channel of what smoothing and balancing decide by, [channels] each.

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
    if not wanted:
        return {}
    flat = flat_model(plan, job, wanted)
    feeds = job.samples.preview(job.options.verify_samples)
    seen = observe_channels(flat, wanted, feeds, job.options.calibration).observers
    return {name: observer.maxima for name, observer in seen.items()}
