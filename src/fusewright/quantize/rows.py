"""Tensors joined along another axis than their channels: tokens, rows, lines of a map.

One step for all of them may lose a part here too, and no factor of the layer's weight is of one
part alone. Nothing is edited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusewright.calibrate.power import ChannelPower
from fusewright.graph.layout import region_behind
from fusewright.graph.walk import is_constant
from fusewright.plan.plan import Plan, node_index
from fusewright.quantize.columns import channels_of
from fusewright.quantize.unlike import GIVEN_UP, layers_of, parts_of


@dataclass(frozen=True)
class Joined:
    """What layers in steps of one size read, and where it comes from.

    Attributes:
        tensor: its name.
        sources: names of the tensors that it is joined from.
        groups: names of the groups that the layers are in.
    """

    tensor: str
    sources: tuple[str, ...]
    groups: tuple[str, ...]


def find_joined(plan: Plan) -> list[Joined]:
    """Every tensor that is joined from several, not along its channels."""
    nodes, opset = node_index(plan.model.graph), plan.model.opset
    sources: dict[str, tuple[str, ...]] = {}
    groups: dict[str, list[str]] = {}
    for node, group in layers_of(plan, nodes):
        tensor = node.inputs[0]
        if tensor.name not in sources:
            region = region_behind([tensor], opset)
            found = tuple(t.name for t in region.sources if not is_constant(t))
            channels, axis = channels_of(node, opset)
            parts = parts_of(tensor, axis, channels, opset) if len(found) > 1 else []
            by_channel = any(part.name.partition("[")[0] in found for part in parts)
            sources[tensor.name] = () if by_channel else found
        groups.setdefault(tensor.name, []).append(group.name)
    return [
        Joined(name, found, tuple(dict.fromkeys(groups[name])))
        for name, found in sources.items()
        if len(found) > 1
    ]


def lost_part(joined: Joined, seen: Mapping[str, ChannelPower]) -> tuple[str, float] | None:
    """The part that one step for all leaves least, and that in dB; None where it is enough."""
    known = [(name, seen[name]) for name in joined.sources if seen[name].maxima.size]
    largest = max((float(power.maxima.max(initial=0.0)) for _, power in known), default=0.0)
    noise = (largest / 127.0) ** 2 / 12.0
    left = [(float(power.mean_square.mean()) / max(noise, 1e-300), name) for name, power in known]
    least = min((each for each in left if each[0] > 0.0), default=None)
    if least is None or least[0] >= GIVEN_UP:
        return None
    return least[1], 10.0 * float(np.log10(least[0]))
