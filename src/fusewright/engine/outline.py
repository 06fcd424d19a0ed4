"""What an ONNX file says, under the names that TensorRT gives its nodes: a flat view of groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto

from fusewright.groups import KINDS
from fusewright.plan.collapse import DOMAIN
from fusewright.plan.plan import HEAVY_OPS
from fusewright.target.formats import MXFP8_DEQUANTIZE, MXFP8_QUANTIZE, NVFP4_QUANTIZE, TRT_DOMAIN

HEAVY = HEAVY_OPS | {"DeformConv"}
"""Decides what an engine costs, beside the ops that groups are made of."""

DYNAMIC_QUANTIZE = frozenset({f"{TRT_DOMAIN}::{op}" for op in (NVFP4_QUANTIZE, MXFP8_QUANTIZE)})
QUANTIZE = DYNAMIC_QUANTIZE | {"QuantizeLinear"}
_MXFP8_DEQUANTIZE = f"{TRT_DOMAIN}::{MXFP8_DEQUANTIZE}"
DEQUANTIZE = frozenset({"DequantizeLinear", _MXFP8_DEQUANTIZE})
QDQ = QUANTIZE | DEQUANTIZE
LAYOUT = frozenset(
    {"Reshape", "Transpose", "Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "Flatten"}
    | {"Concat", "Pad", "Identity", "Expand", "DepthToSpace", "SpaceToDepth"}
)
"""Ops that only move elements."""

# As TensorRT's layer list prints them.
_TYPES: dict[int, str] = {
    TensorProto.INT8: "Int8",
    TensorProto.UINT8: "UInt8",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.INT4: "Int4",
    TensorProto.FLOAT: "Float",
    TensorProto.FLOAT16: "Half",
    TensorProto.BFLOAT16: "BFloat16",
}
_NEWER_TYPES = {"FLOAT4E2M1": "FP4"}
_TYPES |= {
    getattr(TensorProto, name): text
    for name, text in _NEWER_TYPES.items()
    if hasattr(TensorProto, name)
}


@dataclass(frozen=True)
class OutlineNode:
    """One node; those of local functions are listed once per call.

    Attributes:
        name: as TensorRT spells it, `node | call (Function)` inside a function.
        op: its operator.
        group: the group call it is in, None outside groups.
        reads, writes: tensor names; inside a function they are told apart by the call's name.
        attributes: its numbers, such as `group` of a Conv.
    """

    name: str
    op: str
    group: str | None
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    attributes: dict[str, int] = field(default_factory=dict)


class Outline:
    """The flat view of a model: nodes by TensorRT's names, and which tensor comes from where."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Reads the structure; weights need not be loaded."""
        graph = model.graph
        flat = _Flat(model)
        self.nodes: dict[str, OutlineNode] = {}
        self.kinds = {_name(n): kind_of(n.op_type) for n in graph.node if n.domain == DOMAIN}
        self.stored = {t.name: tuple(t.dims) for t in graph.initializer}
        self.types = {t.name: _TYPES[t.data_type] for t in graph.initializer if _known(t.data_type)}
        for node, data_type in flat.walk(graph.node, (), {}, None):
            self.nodes[node.name] = node
            if data_type is not None and _known(data_type):
                self.types[node.writes[0]] = _TYPES[data_type]
            if node.op == "Constant":
                self.stored[node.writes[0]] = ()
        self.writer = {t: node.name for node in self.nodes.values() for t in node.writes}
        self.readers: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for tensor in node.reads:
                self.readers.setdefault(tensor, []).append(node.name)
        self._members: dict[str, list[OutlineNode]] = {}
        for node in self.nodes.values():
            if node.group is not None:
                self._members.setdefault(node.group, []).append(node)
        self.inputs = frozenset(v.name for v in graph.input) - frozenset(self.stored)
        self.outputs = frozenset(v.name for v in graph.output)

    def heavy(self) -> tuple[str, ...]:
        """Names of the heavy nodes, in the order of the file."""
        return tuple(name for name, node in self.nodes.items() if node.op in HEAVY)

    def members(self, group: str) -> tuple[OutlineNode, ...]:
        """The nodes of one group."""
        return tuple(self._members.get(group, ()))

    def before(self, node: OutlineNode) -> tuple[OutlineNode, ...]:
        """The nodes that write what `node` reads."""
        return tuple(self.nodes[self.writer[t]] for t in node.reads if t in self.writer)

    def after(self, node: OutlineNode) -> tuple[OutlineNode, ...]:
        """The nodes that read what `node` writes."""
        return tuple(self.nodes[n] for t in node.writes for n in self.readers.get(t, ()))

    def behind(self, tensor: str) -> OutlineNode | None:
        """What computes `tensor`, seen through ops that only move elements."""
        node = self.nodes.get(self.writer.get(tensor, ""))
        while node is not None and node.op in LAYOUT and node.reads:
            node = self.nodes.get(self.writer.get(node.reads[0], ""))
        return node

    def quantized_as(self, tensor: str) -> str | None:
        """`Int8`, `FP8`, `Int4` … where a DequantizeLinear is behind `tensor`; else None."""
        node = self.behind(tensor)
        if node is None or node.op not in DEQUANTIZE:
            return None
        if node.op == _MXFP8_DEQUANTIZE:
            return "FP8"
        source = self.nodes.get(self.writer.get(node.reads[0], ""))
        if source is not None and source.op in DYNAMIC_QUANTIZE:
            return "FP4"
        zero_point = node.reads[2] if len(node.reads) > 2 else ""
        known = self.types.get(zero_point) or self.types.get(node.reads[0])
        # ONNX: without a zero-point and a typed constant, what QuantizeLinear writes is uint8.
        return known or "UInt8"

    def planned(self, node: OutlineNode) -> tuple[str | None, str | None]:
        """What the two operands of a heavy node are quantized as."""
        first, second = (*node.reads, "", "")[:2]
        return self.quantized_as(first), self.quantized_as(second)

    def is_stored(self, tensor: str) -> bool:
        """Whether a tensor is a constant, or computed from constants alone."""
        stack, seen = [tensor], set()
        while stack:
            name = stack.pop()
            if not name or name in self.stored or name in seen:
                continue
            seen.add(name)
            if name not in self.writer:
                return False
            stack.extend(self.nodes[self.writer[name]].reads)
        return True


class _Flat:
    """Walks a model with its functions unfolded."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._functions = {(f.domain, f.name): f for f in model.functions}

    def walk(
        self,
        nodes: Iterable[onnx.NodeProto],
        calls: tuple[str, ...],
        names: dict[str, str],
        group: str | None,
    ) -> Iterator[tuple[OutlineNode, int | None]]:
        """Each node, with the data type of a Constant.

        `calls` are the calls around the nodes, innermost first; `names` says what the tensors
        that cross the function's boundary are called outside.
        """
        scope = "/".join(calls)

        def outside(tensor: str) -> str:
            return names.get(tensor) or (f"{scope}//{tensor}" if scope and tensor else tensor)

        for node in nodes:
            body = self._functions.get((node.domain, node.op_type))
            reads, writes = (tuple(map(outside, part)) for part in (node.input, node.output))
            if body is None:
                name = " | ".join((_name(node), *calls))
                yield _node(node, name, group, (reads, writes)), _constant_type(node)
                continue
            call = f"{_name(node)} ({node.op_type})"
            inner = dict(zip(body.input, reads, strict=False))
            inner |= dict(zip(body.output, writes, strict=False))
            owner = group or (_name(node) if node.domain == DOMAIN else None)
            yield from self.walk(body.node, (call, *calls), inner, owner)


def _node(
    node: onnx.NodeProto, name: str, group: str | None, ends: tuple[tuple[str, ...], ...]
) -> OutlineNode:
    numbers = {a.name: int(a.i) for a in node.attribute if a.type == onnx.AttributeProto.INT}
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    return OutlineNode(name, op, group, ends[0], ends[1], numbers)


def _constant_type(node: Any) -> int | None:
    value = next((a for a in node.attribute if a.name == "value"), None)
    return value.t.data_type if node.op_type == "Constant" and value is not None else None


def _known(data_type: int) -> bool:
    return data_type in _TYPES


def kind_of(function: str) -> str:
    """The kind of a group by its function; one with several structures has `ConvBNAct_2` too."""
    return function if function in KINDS else function.rpartition("_")[0] or function


def _name(node: onnx.NodeProto) -> str:
    return node.name or f"node_of_{node.output[0]}"
