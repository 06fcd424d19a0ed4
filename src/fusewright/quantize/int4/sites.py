"""The weights that become INT4, and those of the chosen Linears that cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.walk import attribute, captured, is_constant, peek, producer
from fusewright.groups.attention import MHA_IN_PROJECTION, SCALED_DOT_PRODUCT_ATTENTION
from fusewright.groups.swin import SWIN_ATTENTION
from fusewright.plan.plan import Group, Plan, node_index
from fusewright.quantize.channel_axis import moves
from fusewright.quantize.int4.blocks import check_block, choose_block
from fusewright.target.precision import INT4

_ATTENTIONS = (SCALED_DOT_PRODUCT_ATTENTION.kind, SWIN_ATTENTION.kind)


@dataclass(frozen=True)
class Int4Site:
    """A stored matrix that becomes INT4.

    Attributes:
        tensor: its name.
        readers: the (node, input) slots that will read the four bits: MatMul or Gemm.
        axis: of the input channels K; 1 for a Gemm with transB.
        reads: the tensors it is multiplied with, whose last axis are these channels.
        shape: (K, N).
        block: input channels that share a scale.
        groups: names of the groups it belongs to.
        makes_logits: its output becomes q or k of an attention, alone or packed with v.
    """

    tensor: str
    readers: tuple[tuple[str, int], ...]
    axis: int
    reads: tuple[str, ...]
    shape: tuple[int, int]
    block: int
    groups: tuple[str, ...]
    makes_logits: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes it will take, with float32 scales."""
        inputs, outputs = self.shape
        return inputs * outputs // 2 + 4 * (inputs // self.block) * outputs


@dataclass(frozen=True)
class Kept:
    """Why a weight of a chosen group stays float."""

    tensor: str
    groups: tuple[str, ...]
    reason: str


def matrix_of(tensor: gs.Constant, site: Int4Site) -> np.ndarray:
    """The stored weight as [K, N], float32."""
    values = peek(tensor)
    return np.asarray(values.T if site.axis else values, np.float32)


def is_int4(group: Group) -> bool:
    """Whether the plan wants the group's weights in four bits."""
    return group.apply and group.decision == INT4


def int4_sites(
    plan: Plan, block: int | None = None, chosen: Callable[[Group], bool] = is_int4
) -> list[Int4Site | Kept]:
    """The weights of all chosen groups, in the order of the graph.

    Args:
        plan: of the flat normalized graph; it is not changed.
        block: input channels that are to share a scale; None takes the plan's. A weight gets
            fewer where its K asks for it.
        chosen: which groups.

    Raises:
        UsageError: there are no blocks of this size.
    """
    wanted = plan.block_size if block is None else block
    check_block(wanted)
    nodes = node_index(plan.model.graph)
    owners: dict[int, list[Group]] = {}
    for group in plan.groups:
        for name in group.members if chosen(group) else ():
            owners.setdefault(id(nodes[name]), []).append(group)
    look = _Look(wanted, plan.model.opset, _fixed(plan.model.graph), _makes_logits(plan, nodes))
    weights: dict[int, tuple[gs.Constant, list[gs.Node]]] = {}
    for node in plan.model.graph.nodes:
        weight = _weight(node) if id(node) in owners else None
        if weight is not None:
            weights.setdefault(id(weight), (weight, []))[1].append(node)
    return [_judge(weight, readers, owners, look) for weight, readers in weights.values()]


@dataclass(frozen=True)
class _Look:
    """What a weight is judged by: the block asked for, and sets of ids of tensors and nodes."""

    wanted: int
    opset: int
    fixed: set[int]
    logits: set[int]


def _makes_logits(plan: Plan, nodes: dict[str, gs.Node]) -> set[int]:
    """The MatMuls whose output, moved, scaled or shifted, is q or k of an attention group."""
    found: set[int] = set()
    tensors = plan.model.graph.tensors()
    for group in plan.groups:
        if group.kind == MHA_IN_PROJECTION.kind:
            found.update(id(nodes[name]) for name in group.members)
        for name in group.inputs[:2] if group.kind in _ATTENTIONS else ():
            node = producer(tensors[name])
            while node is not None and _weight(node) is None and _passes(node):
                node = producer(next(t for t in node.inputs if not is_constant(t)))
            found.update(() if node is None else (id(node),))
    return found


def _passes(node: gs.Node) -> bool:
    """Whether the node has one computed input, which it moves, scales or shifts."""
    computed = [t for t in node.inputs if not is_constant(t) and not t.is_empty()]
    affine = node.domain is None and node.op in ("Add", "Div", "Mul")
    return len(computed) == 1 and (affine or moves(node))


def _fixed(graph: gs.Graph) -> set[int]:
    """What a subgraph reads, or is an output."""
    found = {id(t) for t in graph.outputs}
    for node in graph.nodes:
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            found.update(id(t) for t in captured(node))
    return found


def _weight(node: gs.Node) -> gs.Constant | None:
    if node.domain is not None or node.op not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    is_matrix = is_constant(weight) and len(weight.shape) == 2
    return weight if is_matrix and not is_constant(node.inputs[0]) else None


def _judge(
    weight: gs.Constant,
    readers: list[gs.Node],
    owners: dict[int, list[Group]],
    look: _Look,
) -> Int4Site | Kept:
    groups = tuple(dict.fromkeys(g.name for node in readers for g in owners[id(node)]))
    axes = {_input_axis(node, look.opset) for node in readers}
    axis = axes.pop()
    inputs, outputs = (int(weight.shape[i]) for i in (axis, 1 - axis))
    block = choose_block(inputs, outputs, look.wanted)
    reason = block if isinstance(block, str) else None
    if axes:
        reason = f"'{weight.name}' is read in both orientations"
    elif numpy_type(weight.dtype) != np.float32:
        reason = f"'{weight.name}' is {numpy_type(weight.dtype)}, not float32"
    elif id(weight) in look.fixed:
        reason = f"'{weight.name}' is an output of the model, or read inside a subgraph"
    elif any(attribute(node, "transA", look.opset) for node in readers if node.op == "Gemm"):
        reason = f"the input of '{readers[0].name}' is transposed"
    if reason is not None or isinstance(block, str):
        return Kept(weight.name, groups, reason or "")
    slots = tuple((node.name, 1) for node in readers)
    reads = tuple(dict.fromkeys(node.inputs[0].name for node in readers))
    logits = any(id(node) in look.logits for node in readers)
    return Int4Site(weight.name, slots, axis, reads, (inputs, outputs), block, groups, logits)


def _input_axis(node: gs.Node, opset: int) -> int:
    return 1 if node.op == "Gemm" and attribute(node, "transB", opset) else 0
