"""Groups that calibration says nothing of: what they read was empty on every sample."""

from __future__ import annotations

from collections.abc import Collection

from fusewright.plan.decide import settle
from fusewright.plan.demand import demanded_edges
from fusewright.plan.plan import Group, Plan, node_index


def leave_unseen(plan: Plan, tensors: Collection[str]) -> list[Group]:
    """Leaves the groups float that read a tensor of no known range, in place.

    A second stage reads what NonMaxSuppression leaves of a first: on samples without a detection,
    nothing.

    Args:
        plan: what is quantized.
        tensors: those that held no value on any sample.

    Returns:
        The groups that it took from their format; those without weights that lose their quantized
        readers by it become float too.
    """
    if not tensors:
        return []
    nodes = node_index(plan.model.graph)
    found = []
    for group in plan.groups:
        read = [t.name for t in demanded_edges((group,), nodes).values() if t.name in tensors]
        if read:
            group.leave_float(
                f"'{read[0]}' is empty on every calibration sample: its range is unknown"
            )
            found.append(group)
    plan.residual = None if plan.residual is None else plan.residual - set(tensors)
    settle(plan)
    return found
