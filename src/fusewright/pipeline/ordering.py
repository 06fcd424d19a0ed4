"""The stage that puts norms behind window partitions, and proves it."""

from __future__ import annotations

from fusewright.graph.convert import to_proto
from fusewright.pipeline.prepare import runnable
from fusewright.pipeline.stages import Job
from fusewright.plan.order import apply_swaps, find_swaps
from fusewright.plan.plan import Plan


def order_norms(plan: Plan, job: Job) -> None:
    """Moves every norm that commutes with the window partition behind it, in place.

    Taken back where the results change.

    Raises:
        VerifyError: it changed the results, and strict proof was asked for.
    """
    # The proof by regions compares tensors by name; here what lies between the two changes.
    swaps = [] if job.proof.by_regions else find_swaps(plan)
    if not swaps:
        return
    with job.trace.stage("order") as details:
        undo = apply_swaps(plan, swaps)
        after = runnable(to_proto(plan.model.graph), job.source)
        if job.proof.holds("order", after, after):
            for swap in swaps:
                job.trace.add("order", "match", "NormBehindPartition", swap.norm.name)
        else:
            undo()
            job.proof.undo("order", "NormBehindPartition", f"{len(swaps)} norms stay in front")
        details.append(f"{len(swaps)} norms behind window partitions")
