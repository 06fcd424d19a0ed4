"""Parts of unlike range in one tensor, the decision: where one step loses one. Nothing is edited.

A pair has one scale for a whole tensor. Where a layer reads depth in metres beside colours in 0..1
(a Concat, or the channels of one input), coordinates, optical flow, or a skip of another size, the
step of the largest part is coarse for the smallest. A factor per channel moves the difference into
the layer's weights, and a power of two does so exactly:

    conv(x, W) = conv(x·c, W/c)

It stands in front of the Concat, where the kernel that quantizes takes it in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.calibrate.power import ChannelPower
from fusewright.graph.walk import attribute, is_constant, peek, producer, rank_of
from fusewright.plan.demand import demanded_edges
from fusewright.plan.plan import Group, Plan, node_index
from fusewright.quantize.channel_axis import behind
from fusewright.quantize.columns import LAYERS, channels_of, noise_of_rounding, signal
from fusewright.target import FORMATS

# A layer is looked after where rounding leaves its output less than this (25 dB; INT8 leaves some
# 30 to 40), and a factor gains at least 6 dB: less is within what the model of noise is wrong by.
_TOO_LITTLE = 10**2.5
_WORTH_IT = 4.0
# Where no factor gains that, the layer is given up below this (15 dB); SqueezeNet's classifier, at
# 21 dB behind an expansion with few large values, is as good in INT8 as float (22.2 dB, 61.6 %).
GIVEN_UP = 10**1.5
# A part is lost where its own power is less than 20 dB above the noise of the shared step.
_LOST = 100.0
# How much of the difference between ranges goes into the weights, which have one step too.
_SHARES = (0.25, 0.5, 0.75, 1.0)
# Computes each element, or moves it: what comes from an input by these alone is still data.
_RAW = frozenset(
    {"Abs", "Add", "Cast", "Clip", "Concat", "Div", "Exp", "Flatten", "Identity", "Log", "Mul"}
    | {"Neg", "Pad", "Reshape", "Resize", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Transpose"}
    | {"Unsqueeze"}
)
# f(c·x) = c·f(x) per channel, channels where they were; so for Resize, which weighs neighbours.
HOMOGENEOUS = frozenset({"AveragePool", "LeakyRelu", "MaxPool", "Relu", "Resize"})


@dataclass(frozen=True)
class Part:
    """Channels that have one range of their own.

    Attributes:
        name: how a reason speaks of it.
        start: its first channel in the whole.
        stop: the channel behind its last.
        apart: other quantized nodes read it too, with the scale that the whole has.
    """

    name: str
    start: int
    stop: int
    apart: bool = False


@dataclass(frozen=True)
class Site:
    """One tensor of several parts, and the quantized layers that read it.

    Attributes:
        tensor: its name.
        axis: of the channels, from the end.
        layers: names of the nodes.
        groups: names of the groups they are in.
        problem: why its weights cannot take factors; None where they can.
    """

    tensor: str
    axis: int
    parts: tuple[Part, ...]
    layers: tuple[str, ...]
    groups: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class Verdict:
    """What one step does to the parts of a site, and what helps.

    Attributes:
        factors: c, powers of two, [channels]; None where none gains enough.
        lost: the part that has least left.
        left_db: power of that part above the noise of the shared step.
    """

    factors: np.ndarray | None
    lost: Part
    left_db: float

    @property
    def text(self) -> str:
        """For a reason or the trace."""
        return f"one step for all leaves '{self.lost.name}' {self.left_db:.0f} dB"


def find_sites(plan: Plan) -> list[Site]:
    """Every tensor of several parts that layers in steps of one size read."""
    nodes, opset = node_index(plan.model.graph), plan.model.opset
    elsewhere = _read_elsewhere(plan, nodes)
    found: dict[tuple[int, int], tuple[gs.Tensor, int, list[tuple[gs.Node, Group]]]] = {}
    for node, group in layers_of(plan, nodes):
        channels, axis = channels_of(node, opset)
        tensor = node.inputs[0]
        found.setdefault((id(tensor), axis), (tensor, channels, []))[2].append((node, group))
    sites = []
    for (_, axis), (tensor, channels, readers) in found.items():
        parts = parts_of(tensor, axis, channels, opset, elsewhere)
        if len(parts) > 1:
            layers = tuple(node.name for node, _ in readers)
            groups = tuple(dict.fromkeys(group.name for _, group in readers))
            problem = _problem(tensor, readers, plan, nodes)
            sites.append(Site(tensor.name, axis, tuple(parts), layers, groups, problem))
    return sites


def _read_elsewhere(plan: Plan, nodes: dict[str, gs.Node]) -> set[str]:
    """Names of the inputs of Concats that have a pair for other readers too."""
    demanded = demanded_edges(plan.groups, nodes)
    read = {tensor.name for tensor in demanded.values()}
    joined = {t.name for n in nodes.values() if n.op == "Concat" for t in n.inputs}
    return read & joined


def layers_of(plan: Plan, nodes: Mapping[str, gs.Node]) -> Iterator[tuple[gs.Node, Group]]:
    """The layers that read steps of one size, each with its group."""
    for group in plan.groups:
        form = FORMATS[group.decision] if group.reads_quantized else None
        if form is None or form.grows or form.block is not None:
            continue
        read = {group.inputs[i] for i in group.inputs_to_quantize}
        weights = {group.parameters.get(name) for name in group.spec.weights}
        for node in map(nodes.__getitem__, group.members):
            if node.op not in LAYERS or not is_constant(node.inputs[1]):
                continue
            if node.inputs[1].name in weights and node.inputs[0].name in read:
                yield node, group


def _problem(
    tensor: gs.Tensor,
    readers: Sequence[tuple[gs.Node, Group]],
    plan: Plan,
    nodes: Mapping[str, gs.Node],
) -> str | None:
    inside = {id(node) for node, _ in readers}
    for node, group in readers:
        weight = node.inputs[1]
        if any(id(other) not in inside for other in weight.outputs):
            return f"its weight '{weight.name}' is read elsewhere too"
        if any(t is weight for t in plan.model.graph.outputs):
            return f"its weight '{weight.name}' is an output of the model"
        for member in group.members:
            slots = [i for i, t in enumerate(nodes[member].inputs) if t is tensor]
            if slots and (id(nodes[member]) not in inside or slots != [0]):
                return f"'{tensor.name}' is its skip too"
    return None


def parts_of(
    tensor: gs.Tensor, axis: int, channels: int, opset: int, elsewhere: Set[str] = frozenset()
) -> list[Part]:
    """The parts that a tensor was joined from, or each channel of what is still data.

    Those in a tensor of `elsewhere`, which may itself be joined from several, are apart.
    """
    node = producer(tensor)
    if node is not None and is_join(node, axis, opset):
        dims = [t.shape[-axis] if t.shape else None for t in node.inputs]
        sizes = [size for size in dims if isinstance(size, int)]
        if len(sizes) == len(dims) and sum(sizes) == channels:
            joined: list[Part] = []
            for source, size in zip(node.inputs, sizes, strict=True):
                if not size:
                    continue  # an empty tensor may be joined too
                at = joined[-1].stop if joined else 0
                is_apart = source.name in elsewhere
                joined += [
                    replace(p, start=p.start + at, stop=p.stop + at, apart=is_apart or p.apart)
                    for p in parts_of(source, axis, size, opset, elsewhere)
                ]
            return joined
    if node is not None and not _is_raw(tensor):
        source_of = in_front(node, axis, channels, opset)
        if source_of is not None:
            return parts_of(*source_of, channels, opset, elsewhere)
    if channels > 1 and _is_raw(tensor):
        return [Part(f"{tensor.name}[{i}]", i, i + 1) for i in range(channels)]
    return [Part(tensor.name, 0, channels)]


def is_join(node: gs.Node, axis: int, opset: int) -> bool:
    """Whether the node is a Concat of channels."""
    if node.op != "Concat" or node.domain is not None:
        return False
    along, rank = int(attribute(node, "axis", opset)), rank_of(node.outputs[0])
    return along == -axis if along < 0 else rank is not None and along == rank - axis


def in_front(node: gs.Node, axis: int, channels: int, opset: int) -> tuple[gs.Tensor, int] | None:
    """The tensor, and its channel axis, that a node hands on channel by channel."""
    if node.domain is not None or not node.inputs or is_constant(node.inputs[0]):
        return None
    source = node.inputs[0]
    if node.op in HOMOGENEOUS:
        return (source, axis) if rank_of(source) == rank_of(node.outputs[0]) else None
    shape = list(source.shape or ())
    for place in range(1, len(shape) + 1):
        moved = node.op != "Concat" and shape[-place] == channels
        if moved and behind(node, place, channels, opset) == axis:
            return source, place
    return None


def _is_raw(tensor: gs.Tensor) -> bool:
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        node = producer(waiting.pop())
        if node is None:
            continue
        if node.op not in _RAW or node.domain is not None:
            return False
        new = [t for t in node.inputs if id(t) not in seen and not t.is_empty()]
        seen.update(map(id, new))
        waiting += new
    return True


def judge(site: Site, seen: ChannelPower, plan: Plan) -> Verdict | None:
    """Factors for a site, or what is lost where none helps; None where nothing is."""
    maxima, squares = seen.maxima, seen.mean_square
    largest = float(maxima.max(initial=0.0))
    if not np.isfinite(largest) or largest <= 0.0:
        return None
    step = largest / 127.0
    left = {part: _left(part, squares, step) for part in site.parts}
    lost = min(left, key=left.__getitem__)
    if left[lost] >= _LOST:
        return None
    most = _factors(site.parts, maxima, _SHARES[-1])
    # One that is as large as the whole keeps its scale, whatever is done.
    apart = [p for p, power in left.items() if p.apart and power < _LOST and most[p.start] > 1.0]
    nodes, opset = node_index(plan.model.graph), plan.model.opset
    layers = [(nodes[name], peek(nodes[name].inputs[1])) for name in site.layers]

    def worst(factors: np.ndarray) -> float:
        """Power of the signal over that of the noise, in the layer that has least."""
        return min(
            signal(node, weight, seen.variance, opset)
            / max(noise_of_rounding(node, weight, (factors, squares, step), opset), 1e-300)
            for node, weight in layers
        )

    ones = np.ones(maxima.size)
    before = worst(ones)
    if before >= _TOO_LITTLE and not apart:
        return None
    choices = [c for c in (_factors(site.parts, maxima, share) for share in _SHARES) if c.max() > 1]
    able = [c for c in choices if all(c[part.start] > 1.0 for part in apart)]
    best = max(able, key=worst, default=None)
    helps = best is not None and (bool(apart) or worst(best) >= _WORTH_IT * before)
    if not helps and before >= GIVEN_UP:
        return None
    decibels = 10.0 * float(np.log10(left[lost]))
    return Verdict(best if helps else None, lost, decibels)


def _left(part: Part, power: np.ndarray, step: float) -> float:
    mean = float(power[part.start : part.stop].mean())
    return mean / (step**2 / 12.0) if mean > 0.0 else np.inf


def _factors(parts: Sequence[Part], maxima: np.ndarray, share: float) -> np.ndarray:
    found, largest = np.ones(maxima.size), maxima.max()
    for part in parts:
        own = maxima[part.start : part.stop].max()
        if own > 0.0:
            found[part.start : part.stop] = 2.0 ** np.floor(share * np.log2(largest / own))
    return found
