"""Swin: the map cut into windows, attention inside each, and the windows put back."""

from __future__ import annotations

from typing import Any

from fusewright.graph.layout import Region
from fusewright.groups.attention import core, size_of
from fusewright.groups.kind import Finding, GroupKind
from fusewright.match.attention import CORE, Attention, softmax_axis
from fusewright.match.matcher import Match
from fusewright.match.scene import Scene
from fusewright.match.window import Window, windowing_of


def _layout(region: Region, window: Window) -> Finding:
    return Finding(
        nodes=region.nodes,
        anchor=region.nodes[0],
        inputs=region.sources,
        parameters={},
        outputs=region.results,
        details=_details(window),
    )


def _details(window: Window) -> dict[str, Any]:
    details: dict[str, Any] = {"window": list(window.size), "shift": list(window.shift)}
    details["map"] = list(window.map)
    if any(window.padding):
        details["padding"] = list(window.padding)
    if window.rolls_first:
        details["rolls_first"] = True
    return details


def _partition(match: Match, scene: Scene) -> Finding | str:
    windowing = windowing_of(Attention(match, scene))
    if isinstance(windowing, str):
        return windowing
    return _layout(windowing.partition, windowing.window)


def _reverse(match: Match, scene: Scene) -> Finding | str:
    windowing = windowing_of(Attention(match, scene))
    if isinstance(windowing, str):
        return windowing
    if isinstance(windowing.reverse, str):
        return windowing.reverse
    return _layout(windowing.reverse, windowing.window)


def _attention(match: Match, scene: Scene) -> Finding | str:
    attention = Attention(match, scene)
    windowing = windowing_of(attention)
    if isinstance(windowing, str):
        return windowing
    window = windowing.window
    shown = {"window": list(window.size), "shift": list(window.shift)}
    return core(match, shown | size_of(attention))


_MOVES = "layout only: pairs of its neighbours move through it"

SWIN_WINDOW_PARTITION = GroupKind(
    kind="SwinWindowPartition",
    formula="windows of roll(pad(map), -shift)",
    pattern=CORE,
    rejects=softmax_axis,
    grow=_partition,
    moves_pairs=True,
    never_quantized=_MOVES,
)

SWIN_WINDOW_REVERSE = GroupKind(
    kind="SwinWindowReverse",
    formula="the inverse of SwinWindowPartition",
    pattern=CORE,
    rejects=softmax_axis,
    grow=_reverse,
    moves_pairs=True,
    never_quantized=_MOVES,
)

SWIN_ATTENTION = GroupKind(
    kind="SwinAttention",
    formula="softmax(scale·q·kᵀ + position bias + window mask)·v",
    pattern=CORE,
    rejects=softmax_axis,
    grow=_attention,
    needs_quantized_output=True,
)
