"""SmoothQuant, the decision: where activation outliers can move into weights. Nothing is edited.

A producer that stores a factor per channel (the scale of a norm, the columns of a Linear) writes a
tensor that quantized Linears read: x·W = (x/s)·(diag(s)·W), exact in real arithmetic. Only ops that
move elements, or average them channel by channel, may stand between (window partitions, the token
that a classifier reads). The way from v through attention to the output projection is exact too
and is not taken: TensorRT's fused attention quantizes it with scales of its own.

https://arxiv.org/abs/2211.10438
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import captured, is_constant, peek, producer
from fusewright.plan.plan import Group, Plan, node_index
from fusewright.quantize.absorb import Absorber, find_absorber, named
from fusewright.quantize.channel_axis import SHAPE_READERS, behind, moves

Slot = tuple[str, int]


@dataclass(frozen=True)
class Smoothing:
    """One place where channels can be scaled.

    Attributes:
        producer: the node that stores the scale: a norm, a Mul by a vector, or a Linear's MatMul.
        source: the tensor it writes, behind its bias and activation.
        divided: the (node, input) slots of stored tensors that are divided by s on their last axis.
        weights: the stored [in, out] matrices whose rows are multiplied by s.
        groups: names of the quantized groups that read the tensor.
        observe: the tensors that they read, whose maxima per channel decide s.
        changed: every tensor that holds other values afterwards.
        channels: length of s.
    """

    producer: str
    source: str
    divided: tuple[Slot, ...]
    weights: tuple[str, ...]
    groups: tuple[str, ...]
    observe: tuple[str, ...]
    changed: tuple[str, ...]
    channels: int


@dataclass(frozen=True)
class Skip:
    """Why quantized Linears are not smoothed; `groups` read `source`."""

    source: str
    groups: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class _Reader:
    """A quantized Linear: its MatMul and the group it belongs to."""

    node: gs.Node
    group: Group

    @property
    def weight(self) -> gs.Constant:
        return self.node.inputs[1]


@dataclass
class _Graph:
    """What the search looks up."""

    plan: Plan
    fixed: frozenset[int]
    readers: dict[int, _Reader]

    @property
    def opset(self) -> int:
        return self.plan.model.opset

    def is_frozen(self, node: gs.Node) -> bool:
        return node.name in self.plan.model.frozen


@dataclass
class _Region:
    """The tensors between a producer and the Linears it feeds: id → (tensor, channel axis)."""

    axes: dict[int, tuple[gs.Tensor, int]] = field(default_factory=dict)
    concats: dict[int, gs.Node] = field(default_factory=dict)


def plan_smoothing(plan: Plan) -> list[Smoothing | Skip]:
    """Every tensor that quantized Linears read, as a place to smooth or with the reason why not.

    In the order of the graph. Norms and Linears may stand behind each other: a matrix can be
    divided on one side and multiplied on the other.
    """
    graph = _look_up(plan)
    found: dict[int, tuple[gs.Tensor, list[_Reader]]] = {}
    for reader in graph.readers.values():
        source = _source(reader.node.inputs[0])
        found.setdefault(id(source), (source, []))[1].append(reader)
    return [_judge(source, readers, graph) for source, readers in found.values()]


def _look_up(plan: Plan) -> _Graph:
    nodes = node_index(plan.model.graph)
    fixed = {id(t) for t in plan.model.graph.outputs}
    for node in nodes.values():
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            fixed.update(id(t) for t in captured(node))
    readers = {}
    for group in plan.groups:
        for name in group.members if group.is_quantized else ():
            if _is_linear(nodes[name], group):
                readers[id(nodes[name])] = _Reader(nodes[name], group)
    order = [readers[id(n)] for n in plan.model.graph.nodes if id(n) in readers]
    return _Graph(plan, frozenset(fixed), {id(reader.node): reader for reader in order})


def _is_linear(node: gs.Node, group: Group) -> bool:
    """Whether the node multiplies what the group quantizes by a matrix that it quantizes."""
    if node.op != "MatMul" or not is_constant(node.inputs[1]) or len(node.inputs[1].shape) != 2:
        return False
    weights = {group.parameters.get(name) for name in group.spec.weights}
    read = {group.inputs[i] for i in group.inputs_to_quantize}
    return node.inputs[1].name in weights and node.inputs[0].name in read


def _source(tensor: gs.Tensor) -> gs.Tensor:
    """Back to the tensor that is only moved from there on."""
    while True:
        node = producer(tensor)
        if node is None or not moves(node):
            return tensor
        moved = node.inputs if node.op == "Concat" else node.inputs[:1]
        computed = [t for t in moved if not is_constant(t)]
        if not computed:
            return tensor  # rows of a stored table
        tensor = computed[0]


def _judge(source: gs.Tensor, readers: Sequence[_Reader], graph: _Graph) -> Smoothing | Skip:
    names = tuple(dict.fromkeys(reader.group.name for reader in readers))
    channels = int(readers[0].weight.shape[0])
    found = (
        find_absorber(source, channels, graph.plan.model, graph.fixed)
        if channels > 1
        else "has a single channel"
    )
    if isinstance(found, str):
        return Skip(source.name, names, found)
    region = _region(source, channels, graph)
    reason = region if isinstance(region, str) else _shared_weight(readers, found, graph)
    if reason is not None or isinstance(region, str):
        return Skip(source.name, names, reason or "")
    inside = [tensor for tensor, _ in region.axes.values()]
    return Smoothing(
        producer=found.node.name,
        source=source.name,
        divided=tuple((node.name, slot) for node, slot in found.slots),
        weights=_unique(reader.weight.name for reader in readers),
        groups=_unique(reader.group.name for reader in readers),
        observe=_unique(reader.node.inputs[0].name for reader in readers),
        changed=_unique(t.name for t in (*found.changed, *inside)),
        channels=channels,
    )


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _region(source: gs.Tensor, channels: int, graph: _Graph) -> _Region | str:
    """Everything behind `source` up to the quantized Linears, or what else reads it."""
    region, waiting = _Region(), [(source, 1)]
    while waiting:
        tensor, axis = waiting.pop()
        known = region.axes.setdefault(id(tensor), (tensor, axis))
        if known[1] != axis:
            return f"the channels of '{tensor.name}' are on two axes"
        if id(tensor) in graph.fixed:
            return f"'{tensor.name}' is an output of the model, or read inside a subgraph"
        for node in tensor.outputs:
            found = _step(node, tensor, axis, channels, graph)
            if isinstance(found, str):
                return found
            if found:
                new = [t for t in node.outputs if id(t) not in region.axes]
                waiting += [(t, found) for t in new]
                if node.op == "Concat":
                    region.concats[id(node)] = node
    return _torn(region) or region


def _step(node: gs.Node, tensor: gs.Tensor, axis: int, channels: int, graph: _Graph) -> int | str:
    """The channel axis behind a mover that reads `tensor`; 0 where it ends; or what stops it."""
    if id(node) in graph.readers and node.inputs[0] is tensor:
        return 0 if axis == 1 else f"{named(node)} reads the channels on another axis"
    if node.op in SHAPE_READERS:
        return 0
    data = node.inputs if node.op == "Concat" else node.inputs[:1]
    if not moves(node) or not any(t is tensor for t in data) or graph.is_frozen(node):
        return f"is read by {named(node)} too, which is no quantized Linear"
    found = behind(node, axis, channels, graph.opset)
    return f"{named(node)} {found}" if isinstance(found, str) else found


def _torn(region: _Region) -> str | None:
    """A Concat of the region with something else than its tensors and stored zeros."""
    for node in region.concats.values():
        for tensor in node.inputs:
            zeros = is_constant(tensor) and not np.any(peek(tensor))
            if id(tensor) not in region.axes and not zeros:
                return f"{named(node)} adds other values ('{tensor.name}')"
    return None


def _shared_weight(readers: Sequence[_Reader], absorber: Absorber, graph: _Graph) -> str | None:
    """A weight that is also read by a node outside, which would be changed with it."""
    inside = {id(reader.node) for reader in readers}
    for reader in readers:
        if id(reader.weight) in graph.fixed:
            return f"the weight '{reader.weight.name}' is an output of the model"
        for other in reader.weight.outputs:
            if id(other) not in inside:
                return f"the weight '{reader.weight.name}' is read by {named(other)} too"
    widths = {int(reader.weight.shape[0]) for reader in readers}
    if len(widths) > 1:
        return f"{named(absorber.node)} feeds Linears of {sorted(widths)} input channels"
    return None
