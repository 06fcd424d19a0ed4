"""A plan and its placement as text in which nothing of an exporter's spelling is left.

    014 SwinAttention int8 head_size=16 … Q[0, 1, 2] fixed 1 interior 0 … reads (013.0; 013.1; …)
    pair inside 013 where it is computed serves 014.0, 014.1, 014.2; observed, 1 share
    weight 013.w axis 1

Groups are numbered by data flow: what a group is, and what is above it. Between groups stand what
exporters write each in their own way (embeddings, masks, patch merging); of that is kept only which
groups and inputs of the model a tensor comes from. That it computes the same is tested by running.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import onnx_graphsurgeon as gs

from fusewright.graph.walk import is_constant, producer
from fusewright.plan.demand import data_inputs
from fusewright.plan.plan import Group, Plan, node_index
from fusewright.quantize.placement import Site, place

_SHAPE_ONLY = frozenset({"Shape", "Size"})
# Inputs behind the first say where to move, not what.
_AMOUNTS = frozenset(
    {"Expand", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "Unsqueeze"}
)
Slot = tuple[str, int]


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: outputs of groups, by name and position, and model inputs."""

    outputs: frozenset[tuple[str, int]] = frozenset()
    inputs: frozenset[str] = frozenset()

    def __or__(self, other: Origin) -> Origin:
        return Origin(self.outputs | other.outputs, self.inputs | other.inputs)


class Signature:
    """Writes one plan."""

    def __init__(self, plan: Plan) -> None:
        self.graph, self.opset = plan.model.graph, plan.model.opset
        self.nodes, self.tensors = node_index(self.graph), self.graph.tensors()
        self.groups = {group.name: group for group in plan.groups if group.apply}
        self.owner = {m: g for g in self.groups.values() for m in g.members}
        self.placement = place(plan)
        self._origins: dict[int, Origin] = {}
        self._keys: dict[str, tuple[int, str, str]] = {}

    def lines(self) -> list[str]:
        """Groups, then outputs, pairs and quantized weights."""
        groups = [
            f"{self.number[g.name]} {_own(g, self.tensors)} reads ({self._reads(g)})"
            for g in self.groups.values()
        ]
        outputs = [f"output {self._named(self._origin(t))}" for t in self.graph.outputs]
        return [*sorted(groups), *outputs, *sorted(self._pairs()), *sorted(self._weights())]

    @cached_property
    def number(self) -> dict[str, str]:
        """Position of each group; where nothing tells two apart, they have one number."""
        keys = sorted(self._key(group) for group in self.groups.values())
        return {name: f"{keys.index(self._key(g)):03}" for name, g in self.groups.items()}

    # Groups.

    def _key(self, group: Group) -> tuple[int, str, str]:
        """Groups on the longest way back, what the group is, and a digest of all above."""
        if group.name not in self._keys:
            reads = [self._origin(self.tensors[name]) for name in group.inputs]
            above = [sorted((self._key(self.groups[n]), i) for n, i in o.outputs) for o in reads]
            depth = 1 + max((key[0] for keys in above for key, _ in keys), default=0)
            text = f"{_own(group, self.tensors)} {above} {[sorted(o.inputs) for o in reads]}"
            digest = hashlib.sha256(text.encode()).hexdigest()
            self._keys[group.name] = depth, _own(group, self.tensors), digest
        return self._keys[group.name]

    def _reads(self, group: Group) -> str:
        """By input; what follows q, k and v makes up the mask, in as many tensors as it may be."""
        reads = [self._origin(self.tensors[name]) for name in group.inputs]
        if "head_size" in group.details and reads[3:]:
            reads[3:] = [_union(reads[3:])]
        return "; ".join(map(self._named, reads))

    def _named(self, origin: Origin) -> str:
        outputs = sorted(f"{self.number[name]}.{i}" for name, i in origin.outputs)
        return " ".join((*outputs, *sorted(origin.inputs))) or "stored"

    def _origin(self, tensor: gs.Tensor) -> Origin:
        if id(tensor) not in self._origins:
            self._origins[id(tensor)] = self._found(tensor)
        return self._origins[id(tensor)]

    def _found(self, tensor: gs.Tensor) -> Origin:
        node = producer(tensor)
        if node is None:
            return Origin() if is_constant(tensor) else Origin(inputs=frozenset({tensor.name}))
        if node.op in _SHAPE_ONLY:
            return Origin()
        group = self.owner.get(node.name)
        if group is not None and tensor.name in group.outputs:
            return Origin(frozenset({(group.name, group.outputs.index(tensor.name))}))
        read = node.inputs[:1] if node.op in _AMOUNTS else node.inputs
        return _union([self._origin(t) for t in read if not t.is_empty()])

    # Pairs.

    def _pairs(self) -> Iterable[str]:
        behind = {slot: site for site in self.placement.activations for slot in site.readers}
        served: dict[str, set[str]] = defaultdict(set)
        for group in self.groups.values():
            for slot, role in self._demanded(group):
                for site in self._sites(slot, behind):
                    served[site.tensor].add(f"{self.number[group.name]}.{role}")
        scales = [site.scale for site in self.placement.activations]
        for site in self.placement.activations:
            fixed = self.placement.fixed.get(site.scale)
            how = "observed" if fixed is None else f"fixed {fixed:g}"
            serves = ", ".join(sorted(served[site.tensor]))
            share = f"{scales.count(site.scale)} share"
            yield f"pair {self._where(site)} serves {serves}; {how}, {share}"

    def _demanded(self, group: Group) -> Iterable[tuple[Slot, str]]:
        """The input slots that the group's contract wants quantized, and their role in it."""
        if not group.is_quantized:
            return
        for position in group.inputs_to_quantize:
            for member in group.members:
                for i, tensor in enumerate(self.nodes[member].inputs):
                    if tensor.name == group.inputs[position]:
                        yield (member, i), str(position)
        yield from (((pair.node, pair.slot), "fixed") for pair in group.fixed)
        yield from (((slot.node, slot.slot), f"interior{slot.slot}") for slot in group.interior)

    def _sites(self, slot: Slot, behind: dict[Slot, Site]) -> list[Site]:
        """The pairs that a slot is behind, at once or through what only moves elements."""
        if slot in behind:
            return [behind[slot]]
        node = producer(self.nodes[slot[0]].inputs[slot[1]])
        moved = () if node is None else data_inputs(node, self.opset)
        assert moved, f"{slot} wants a pair and has none"
        return [site for i in range(len(moved)) for site in self._sites((node.name, i), behind)]

    def _where(self, site: Site) -> str:
        tensor = self.tensors[site.tensor]
        node = producer(tensor)
        group = None if node is None else self.owner.get(node.name)
        if group is None or tensor.name in group.outputs:
            return f"from {self._named(self._origin(tensor))}"
        makes = "moved" if data_inputs(node, self.opset) else "computed"
        return f"inside {self.number[group.name]} where it is {makes}"

    def _weights(self) -> Iterable[str]:
        for weight in self.placement.weights:
            for name, _ in weight.readers:
                group = self.owner[name]
                roles = [n for n, t in group.parameters.items() if t == weight.tensor]
                yield f"weight {self.number[group.name]}.{'/'.join(roles)} axis {weight.axis}"


def _union(origins: Iterable[Origin]) -> Origin:
    whole = Origin()
    for origin in origins:
        whole |= origin
    return whole


def _own(group: Group, tensors: dict[str, gs.Tensor]) -> str:
    """What the group is, whatever is around it."""
    details = [f"{key}={value}" for key, value in sorted(group.details.items())]
    stored = [f"{n}{_shape(n, tensors[t])}" for n, t in sorted(group.parameters.items())]
    contract = f"Q{list(group.inputs_to_quantize)} fixed {len(group.fixed)}"
    inside = f"interior {len(group.interior)} writes {len(group.outputs)}"
    return " ".join((group.kind, group.decision, *details, *stored, contract, inside))


def _shape(role: str, tensor: gs.Tensor) -> list[int]:
    """As far as broadcasting makes a difference; a mask may be one for all heads or batches."""
    shape = list(tensor.shape)
    if role.startswith("mask"):
        return shape[-2:]
    while shape and shape[0] == 1:
        del shape[0]
    return shape


def signature(plan: Plan) -> list[str]:
    """One line per group, output, pair and quantized weight."""
    return Signature(plan).lines()
