"""Layers whose angles the steps of calibration would spoil: what is decided before knows no range.

A diffusion model's time step is a float up to 1000, times frequencies from 1 downwards: steps of
INT8 are eight there, more than a turn.
"""

from __future__ import annotations

from collections.abc import Mapping

from fusewright.calibrate import Ranges
from fusewright.plan.angles import find_angles, spoiled_angles
from fusewright.plan.decide import settle
from fusewright.plan.limits import layer_of
from fusewright.plan.plan import Group, Plan, node_index
from fusewright.quantize.placement import Placement

# Values of about 1 reach 4 where they are normal.
_LARGEST_OF_NORMAL = 4.0


def thresholds_of(placement: Placement, ranges: Ranges) -> dict[str, float]:
    """Name of each tensor whose values decide a scale → the threshold of that scale."""
    return {
        tensor: ranges[scale].threshold
        for scale, tensors in placement.observe.items()
        if scale in ranges
        for tensor in tensors
    }


def leave_coarse_angles(plan: Plan, thresholds: Mapping[str, float]) -> list[Group]:
    """Leaves the layers float that make angles too coarse by what they read, in place.

    A format that the user asked for stays.

    Args:
        plan: what is quantized.
        thresholds: tensor name → where its quantized values saturate.

    Returns:
        The layers' groups; those without weights that lose their quantized readers by it become
        float too.
    """
    graph = plan.model.graph
    sizes = {name: threshold / _LARGEST_OF_NORMAL for name, threshold in thresholds.items()}
    angles = find_angles(graph, plan.model.opset, sizes)
    nodes, found = node_index(graph), []
    for group in plan.groups if angles else ():
        layer = layer_of(group, nodes) if group.is_quantized and not group.asked else None
        why = None if layer is None else spoiled_angles(layer, angles, group.decision)
        if why is not None:
            group.leave_float(why)
            found.append(group)
    if found:
        settle(plan)
    return found
