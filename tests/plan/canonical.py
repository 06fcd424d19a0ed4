"""A plan and its placement as text that does not depend on names or node order.

    07 ConvBNAddAct int8 x=Q(05) skip=Q(03) w[64,64,3,3]/0

A tensor is written as what makes it: the number of a group, an input of the model, or an operator
outside the groups with its operands. Q(…) is a Q/DQ pair, Q[2 share](…) one of two with one scale.
"""

from __future__ import annotations

import hashlib

import onnx_graphsurgeon as gs

from fusewright.graph.walk import is_constant, producer
from fusewright.match.pattern import COMMUTATIVE
from fusewright.plan.plan import Group, Plan, node_index
from fusewright.quantize.placement import Placement, place

# One exporter flattens, another reshapes or squeezes.
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


class _Writer:
    """Writes one plan; groups go by a digest of all that is above them."""

    def __init__(self, plan: Plan, placement: Placement) -> None:
        self.plan, self.nodes = plan, node_index(plan.model.graph)
        self.owner = {m: g for g in plan.groups if g.apply for m in g.members}
        self.paired = {slot for site in placement.activations for slot in site.readers}
        self.axes = {s: w.axis for w in placement.weights for s in w.readers}
        self.digests: dict[int, str] = {}
        self.depths: dict[int, int] = {}
        self.scales = self._shared_scales(placement)

    def text(self, group: Group) -> str:
        inputs = [f"{n}={self._input(group, t)}" for n, t in self._named(group)]
        return " ".join((group.kind, group.decision, *inputs, *self._weights(group)))

    def digest(self, group: Group) -> str:
        if id(group) not in self.digests:
            text = self.text(group)
            self.digests[id(group)] = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.digests[id(group)]

    def depth(self, group: Group) -> int:
        """Groups on the longest way back."""
        if id(group) not in self.depths:
            above = [self._depth(self._tensor(group, t)) for t in group.inputs]
            self.depths[id(group)] = 1 + max(above, default=0)
        return self.depths[id(group)]

    def tensor(self, tensor: gs.Tensor) -> str:
        node = producer(tensor)
        if is_constant(tensor):
            return f"stored{list(tensor.shape)}"
        if node is None:
            return str(tensor.name)
        if node.name in self.owner:
            return "<" + self.digest(self.owner[node.name]) + ">"
        if node.op in _RESHAPES:
            return f"Reshape({self._slot(node, 0)})"
        operands = [self._slot(node, i) for i in range(len(node.inputs))]
        operands = sorted(operands) if node.op in COMMUTATIVE else operands
        return f"{node.op}({', '.join(operands)})"

    def _depth(self, tensor: gs.Tensor) -> int:
        node = producer(tensor)
        if node is None:
            return 0
        if node.name in self.owner:
            return self.depth(self.owner[node.name])
        return max((self._depth(t) for t in node.inputs), default=0)

    def _slot(self, node: gs.Node, index: int) -> str:
        text = self.tensor(node.inputs[index])
        if (node.name, index) not in self.paired:
            return text
        return f"Q{self.scales.get(node.inputs[index].name, '')}({text})"

    def _named(self, group: Group) -> list[tuple[str, str]]:
        return list(zip(group.spec.inputs, group.inputs, strict=True))

    def _input(self, group: Group, name: str) -> str:
        """How the group reads an input; all its nodes must read it alike."""
        read = {
            self._slot(self.nodes[m], i)
            for m in group.members
            for i, t in enumerate(self.nodes[m].inputs)
            if t.name == name
        }
        assert len(read) == 1, f"group '{group.name}' reads '{name}' as {read}"
        return read.pop()

    def _tensor(self, group: Group, name: str) -> gs.Tensor:
        return next(t for m in group.members for t in self.nodes[m].inputs if t.name == name)

    def _weights(self, group: Group) -> list[str]:
        """Stored matrices and kernels, with the axis of their scales where they are quantized."""
        found = []
        for member in group.members:
            for i, tensor in enumerate(self.nodes[member].inputs):
                if is_constant(tensor) and len(tensor.shape) > 1 and tensor.shape[0] > 1:
                    shape = ",".join(map(str, tensor.shape))
                    axis = f"/{self.axes[member, i]}" if (member, i) in self.axes else ""
                    found.append(f"w[{shape}]{axis}")
        return found

    def _shared_scales(self, placement: Placement) -> dict[str, str]:
        together: dict[str, list[str]] = {}
        for site in placement.activations:
            together.setdefault(site.scale, []).append(site.tensor)
        return {
            name: f"[{len(names)} share]"
            for names in together.values()
            if len(names) > 1
            for name in names
        }


def canonical(plan: Plan) -> list[str]:
    """One line per group, in an order that depends on structure alone, then the outputs."""
    writer = _Writer(plan, place(plan))
    groups = sorted(
        (g for g in plan.groups if g.apply), key=lambda g: (writer.depth(g), writer.digest(g))
    )
    texts = [writer.text(group) for group in groups]
    texts += [f"output {writer.tensor(t)}" for t in plan.model.graph.outputs]
    number = {f"<{writer.digest(g)}>": f"{i:02}" for i, g in enumerate(groups)}
    lines = []
    for i, text in enumerate(texts):
        for digest, short in number.items():
            text = text.replace(digest, short)
        lines.append(f"{i:02} {text}" if i < len(groups) else text)
    return lines
