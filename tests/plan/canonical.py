"""A plan and its placement as text that does not depend on names or node order.

    07 ConvBNAddAct int8 x=Q(05) skip=Q(03) w[64,64,3,3]/0
    11 SwinAttention int8 window=4,4 … q=10.0 k=10.1 v=10.2 Q[1](Softmax) w[1,2,16,16]

A tensor is written as what makes it: the number of a group, and of its output where it has several,
an input of the model, or an operator outside the groups with its operands. Q(…) is a Q/DQ pair,
Q[2 share](…) one of two with one scale. A pair inside a group comes behind its inputs, with the
operator in front of it and the layout between, and its threshold where that is fixed. Where the
residual stream is joined, the Add has a line.
"""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.layout import moved_inputs
from fusewright.graph.walk import is_constant, producer
from fusewright.match.pattern import COMMUTATIVE
from fusewright.plan.plan import Group, Plan, node_index
from fusewright.quantize.placement import Placement, place

# One exporter flattens, another reshapes or squeezes.
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_OPERANDS = ("q", "k", "v")


class _Writer:
    """Writes one plan; groups go by a digest of all that is above them."""

    def __init__(self, plan: Plan, placement: Placement) -> None:
        self.plan, self.nodes = plan, node_index(plan.model.graph)
        self.owner = {m: g for g in plan.groups if g.apply for m in g.members}
        self.paired = {slot for site in placement.activations for slot in site.readers}
        self.axes = {s: w.axis for w in placement.weights for s in w.readers}
        self.digests: dict[int, str] = {}
        self.depths: dict[int, int] = {}
        self.joints: dict[str, tuple[int, str]] = {}
        self.scales = self._shared_scales(placement)
        self.fixed = placement.fixed

    def text(self, group: Group) -> str:
        inputs = [f"{n}={self._input(group, t)}" for n, t in self._named(group)]
        details = [f"{name}={_plain(value)}" for name, value in group.details.items()]
        inside = self._inside(group)
        first = (group.kind, group.decision, *details, *inputs, *inside)
        return " ".join((*first, *self._weights(group)))

    def digest(self, group: Group) -> str:
        if id(group) not in self.digests:
            self.digests[id(group)] = _digest(self.text(group))
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
            group = self.owner[node.name]
            number = f".{group.outputs.index(tensor.name)}" if len(group.outputs) > 1 else ""
            return f"<{self.digest(group)}>{number}"
        if node.op in (*_RESHAPES, "Transpose"):
            return self._layout(node)
        operands = [self._slot(node, i) for i in range(len(node.inputs))]
        operands = sorted(operands) if node.op in COMMUTATIVE else operands
        if not _is_joint(node):
            return f"{node.op}({', '.join(operands)})"
        text = " ".join((node.op, *operands))
        digest = _digest(text)
        self.joints[digest] = self._depth(tensor), text
        return f"<{digest}>"

    def _depth(self, tensor: gs.Tensor) -> int:
        node = producer(tensor)
        if node is None:
            return 0
        if node.name in self.owner:
            return self.depth(self.owner[node.name])
        if id(node) not in self.depths:
            above = max((self._depth(t) for t in node.inputs), default=0)
            self.depths[id(node)] = above + _is_joint(node)
        return self.depths[id(node)]

    def _layout(self, node: gs.Node) -> str:
        """A chain of views and Transposes: exporters split and merge heads in their own ways."""
        turned = node.op == "Transpose"
        above = producer(node.inputs[0])
        while (node.name, 0) not in self.paired and above is not None:
            if above.name in self.owner or above.op not in (*_RESHAPES, "Transpose"):
                break
            node, turned = above, turned or above.op == "Transpose"
            above = producer(node.inputs[0])
        return f"{'moved' if turned else 'Reshape'}({self._slot(node, 0)})"

    def _slot(self, node: gs.Node, index: int) -> str:
        text = self.tensor(node.inputs[index])
        if (node.name, index) not in self.paired:
            return text
        return f"Q{self.scales.get(node.inputs[index].name, '')}({text})"

    def _named(self, group: Group) -> list[tuple[str, str]]:
        if group.spec.grow is None:
            return list(zip(group.spec.inputs, group.inputs, strict=True))
        names = _OPERANDS if "head_size" in group.details else ()
        more = (f"x{i}" for i in range(len(group.inputs)))
        return list(zip((*names, *more), group.inputs, strict=False))

    def _inside(self, group: Group) -> list[str]:
        """Pairs on what the group itself makes."""
        made = {id(t): m for m in group.members for t in self.nodes[m].outputs}
        found = []
        for member in group.members:
            for i, tensor in enumerate(self.nodes[member].inputs):
                if id(tensor) in made and (member, i) in self.paired:
                    threshold = (
                        f"[{self.fixed[tensor.name]:g}]" if tensor.name in self.fixed else ""
                    )
                    found.append(f"Q{threshold}({self._maker(self.nodes[made[id(tensor)]])})")
        return found

    def _maker(self, node: gs.Node) -> str:
        moved = moved_inputs(node, self.plan.model.opset)
        if not moved:
            return str(node.op)
        above = producer(moved[0])
        text = "" if above is None else self._maker(above)
        return text if text.startswith("moved") else f"moved {text}"

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
                if is_constant(tensor) and len(tensor.shape) > 1 and _is_data(tensor):
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


def _is_joint(node: gs.Node) -> bool:
    """Whether it joins the residual stream, which much is read from: a line of its own."""
    return node.op == "Add" and len(node.outputs[0].outputs) > 1


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_data(tensor: gs.Constant) -> bool:
    """Whether it is no vector or number of higher rank: biases and scales of one element."""
    return int(np.prod(tensor.shape)) > tensor.shape[-1]


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def canonical(plan: Plan) -> list[str]:
    """One line per group, in an order that depends on structure alone, then the outputs."""
    writer = _Writer(plan, place(plan))
    lines = [(writer.depth(g), writer.digest(g), writer.text(g)) for g in plan.groups if g.apply]
    outputs = [f"output {writer.tensor(t)}" for t in plan.model.graph.outputs]
    lines = sorted(lines + [(depth, key, text) for key, (depth, text) in writer.joints.items()])
    number = {f"<{key}>": f"{i:02}" for i, (_, key, _) in enumerate(lines)}
    texts = [f"{i:02} {text}" for i, (_, _, text) in enumerate(lines)]
    found = [*texts, *outputs]
    for digest, short in number.items():
        found = [text.replace(digest, short) for text in found]
    return found
