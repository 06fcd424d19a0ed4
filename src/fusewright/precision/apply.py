"""Applying a plan: the graph gets its half tensors and Casts, in place."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import onnx_type
from fusewright.graph.edit import Names, bypass, redirect
from fusewright.graph.walk import captured, is_constant, peek, producer
from fusewright.graph.workspace import Workspace
from fusewright.precision.flow import Flow
from fusewright.precision.kinds import KINDS, HalfKind
from fusewright.precision.plan import HalfPlan
from fusewright.precision.scales import half_scale
from fusewright.precision.types import DEQUANTIZE, FLOAT, QUANTIZE


def apply_half(graph: gs.Graph, plan: HalfPlan, workspace: Workspace | None = None) -> None:
    """Makes the planned nodes of a flat graph half, in place.

    Inputs and outputs of the model keep their names, and their types unless the plan says
    otherwise. A stored tensor is stored in the type of those that read it, in both where they
    differ. Scales of Q/DQ pairs take the type of the pair's float side; where one is half, a pair
    has the same value on both sides.

    Args:
        workspace: where large stored tensors are to lie.
    """
    flow = Flow(graph, KINDS[plan.kind], None, plan.frozen)
    _Editor(flow, plan, workspace).run()


class _Editor:
    def __init__(self, flow: Flow, plan: HalfPlan, workspace: Workspace | None) -> None:
        self.flow, self.plan, self.graph, self.kind = flow, plan, flow.graph, flow.kind
        self.names = Names(flow.graph)
        self.stored = _Stored(flow.kind, self.names, workspace)
        # The scale of each DequantizeLinear, as it was.
        self._scales = {id(n): n.inputs[1] for n in flow.graph.nodes if n.op == DEQUANTIZE}
        self._half_pairs = self._pairs_read_in_half()
        self._divisors = self._half_scales(QUANTIZE)
        self._half: set[int] = set()
        self._casts: dict[int, gs.Tensor] = {}
        self._new: dict[int, list[gs.Node]] = {}

    def run(self) -> None:
        self._settle_types()
        self._settle_names()
        scales = self._half_scales()
        for node in list(self.graph.nodes):
            self._settle_inputs(node)
            if node.op in (QUANTIZE, DEQUANTIZE) and id(node.inputs[1]) in scales:
                node.inputs[1] = self._scale(node.inputs[1], self._is_half(node))
        for node in self.graph.nodes:
            if self._is_half(node):
                _set_attributes(node, self.kind, self.flow)
        self.graph.nodes = self._with_casts()
        self._drop_idle_casts()
        self.stored.keep_names(self.graph.outputs)

    def _is_half(self, node: gs.Node) -> bool:
        return node.name in self.plan.half_nodes or id(node) in self._half_pairs

    def _pairs_read_in_half(self) -> set[int]:
        """`id` of each DequantizeLinear with a half reader: float32 ones get one of their own."""
        half = self.plan.half_nodes
        return {
            id(node)
            for node in self.flow.graph.nodes
            if node.op == DEQUANTIZE and self.flow.slots(node).outputs
            for reader, slot in self.flow.readers(node.outputs[0])
            if reader.name in half and slot in self.flow.slots(reader).inputs
        }

    def _settle_types(self) -> None:
        for tensor in self.graph.inputs:
            if self.plan.io_half and self.flow.types.is_float(tensor):
                self._make_half(tensor)
        for node in self.graph.nodes:
            if self._is_half(node):
                for i in self.flow.slots(node).outputs:
                    self._make_half(node.outputs[i])

    def _make_half(self, tensor: gs.Tensor) -> None:
        self._half.add(id(tensor))
        tensor.dtype = self.kind.dtype

    def _settle_names(self) -> None:
        """Outputs, and what subgraphs and frozen nodes read, keep name and type.

        A Cast stands behind what computes them.
        """
        for tensor in self.graph.outputs:
            if tensor.inputs and self._is_managed(tensor):
                self._keep(tensor, self.plan.io_half)
        for node in self.graph.nodes:
            frozen = node.inputs if node.name in self.plan.frozen else ()
            for tensor in (*frozen, *captured(node)):
                if tensor.inputs and id(tensor) not in self._casts:
                    self._keep(tensor, False)

    def _keep(self, tensor: gs.Tensor, wants_half: bool) -> None:
        is_half = id(tensor) in self._half
        if is_half == wants_half:
            return
        name = self.names.fresh(f"{tensor.name}_{self._suffix(is_half)}")
        inner = gs.Variable(name, tensor.dtype, tensor.shape)
        maker = tensor.inputs[0]
        index = next(i for i, t in enumerate(maker.outputs) if t is tensor)
        redirect(tensor, inner)
        maker.outputs[index] = inner
        self._half.discard(id(tensor))
        if is_half:
            self._half.add(id(inner))
        self._cast_node(inner, tensor, not is_half)
        self._casts[id(inner)] = tensor

    def _is_managed(self, tensor: gs.Tensor) -> bool:
        return id(tensor) in self._half or self.flow.types.is_float(tensor)

    def _settle_inputs(self, node: gs.Node) -> None:
        slots = self.flow.slots_or_none(node)
        if slots is None:
            return
        for i in (*slots.inputs, *slots.rigid_inputs):
            wants = i in slots.inputs and self._is_half(node)
            tensor = node.inputs[i]
            if is_constant(tensor):
                bounds = self.plan.rewrites.get((node.name, i))
                if wants:
                    node.inputs[i] = self.stored.half(tensor, bounds)
            elif (id(tensor) in self._half) != wants:
                node.inputs[i] = self._cast(tensor, wants)
        for inner in list(captured(node)):
            if id(inner) in self._half:
                _replace_captured(node, inner, self._cast(inner, False))

    def _cast(self, tensor: gs.Tensor, to_half: bool) -> gs.Tensor:
        if id(tensor) not in self._casts:
            name = self.names.fresh(f"{tensor.name}_{self._suffix(to_half)}")
            result = gs.Variable(name, None, tensor.shape)
            maker = producer(tensor)
            if maker is not None and maker.op == DEQUANTIZE and not to_half:
                self._dequantize_again(maker, result)
            else:
                self._cast_node(tensor, result, to_half)
            self._casts[id(tensor)] = result
        return self._casts[id(tensor)]

    def _scale(self, scale: gs.Constant, is_half: bool) -> gs.Constant:
        values = half_scale(peek(scale), self.kind, id(scale) in self._divisors)
        return self.stored.scale(scale, values, is_half)

    def _dequantize_again(self, half: gs.Node, result: gs.Tensor) -> None:
        """Float32 from the same quantized tensor: a Cast behind it would keep the pair unfused."""
        result.dtype = np.dtype(np.float32)
        inputs = [half.inputs[0], self._scale(self._scales[id(half)], False), *half.inputs[2:]]
        name = self.names.fresh(f"{result.name}_{DEQUANTIZE}")
        node = gs.Node(DEQUANTIZE, name, dict(half.attrs), inputs, [result])
        self._new.setdefault(id(half), []).append(node)

    def _cast_node(self, source: gs.Tensor, result: gs.Tensor, to_half: bool) -> None:
        result.dtype = self.kind.dtype if to_half else np.dtype(np.float32)
        to = self.kind.onnx_type if to_half else FLOAT
        name = self.names.fresh(f"{result.name}_Cast")
        maker = source.inputs[0] if source.inputs else None
        node = gs.Node("Cast", name, {"to": to}, [source], [result])
        self._new.setdefault(id(maker), []).append(node)
        if to_half:
            self._half.add(id(result))

    def _with_casts(self) -> list[gs.Node]:
        """The nodes with each Cast right behind what it reads."""
        first = self._new.get(id(None), [])
        return [*first, *(n for node in self.graph.nodes for n in (node, *self._behind(node)))]

    def _behind(self, node: gs.Node) -> list[gs.Node]:
        return self._new.get(id(node), [])

    def _suffix(self, is_half: bool) -> str:
        return self.kind.name if is_half else "fp32"

    def _half_scales(self, *ops: str) -> set[int]:
        """`id` of the scales that a half node of a pair reads, or one of these operators."""
        return {
            id(node.inputs[1])
            for node in self.graph.nodes
            if node.op in (ops or (QUANTIZE, DEQUANTIZE)) and self._is_half(node)
        }

    def _drop_idle_casts(self) -> None:
        """Takes out the model's own Casts that now lie between tensors of one type."""
        for node in list(self.graph.nodes):
            if node.op != "Cast" or not node.inputs or not self.flow.slots_or_none(node):
                continue
            source = node.inputs[0]
            known = source.dtype is not None and not is_constant(source)
            if known and onnx_type(source.dtype) == int(node.attrs["to"]):
                bypass(self.graph, node, source)
        self.graph.nodes = [n for n in self.graph.nodes if n.outputs or n.inputs]


class _Stored:
    """Stored tensors in the types that are read, each made once."""

    def __init__(self, kind: HalfKind, names: Names, workspace: Workspace | None) -> None:
        self._kind, self._names, self._workspace = kind, names, workspace
        self._made: dict[tuple[int, object], gs.Constant] = {}
        # What is replaced stays alive, so that its `id` stays its own.
        self._replaced: list[tuple[gs.Constant, gs.Constant]] = []

    def half(self, tensor: gs.Constant, bounds: object) -> gs.Constant:
        """The tensor in half, its magnitudes within `bounds` (a `Bounds`, or None)."""
        key = (id(tensor), bounds)
        if key not in self._made:
            values = peek(tensor)
            if bounds is not None:
                values = bounds.apply(values)  # type: ignore[attr-defined]
            self._made[key] = self._constant(tensor, self._kind.round(values), self._kind.name)
        return self._made[key]

    def scale(self, tensor: gs.Constant, values: np.ndarray, is_half: bool) -> gs.Constant:
        """A scale as half `values`, or as the float32 numbers that equal them."""
        key = (id(tensor), "half scale" if is_half else "float32 scale")
        if key not in self._made:
            suffix = self._kind.name if is_half else "fp32"
            made = values if is_half else values.astype(np.float32)
            self._made[key] = self._constant(tensor, made, suffix)
        return self._made[key]

    def _constant(self, old: gs.Constant, values: np.ndarray, suffix: str) -> gs.Constant:
        made = gs.Constant(self._names.fresh(f"{old.name}_{suffix}"), values)
        if self._workspace is not None:
            self._workspace.put(made, values)
        self._replaced.append((old, made))
        return made

    def keep_names(self, outputs: Iterable[gs.Tensor]) -> None:
        """Where nothing reads the float32 tensor any more, the new one takes its name.

        A plan knows the weights of its groups by name. One that is an output of the model stays.
        """
        fixed = {id(tensor) for tensor in outputs}
        for old, made in self._replaced:
            if not old.outputs and old.name and id(old) not in fixed:
                made.name, old.name = old.name, ""


def _set_attributes(node: gs.Node, kind: HalfKind, flow: Flow) -> None:
    """Attributes that name the type of a node's result."""
    if not flow.slots(node).outputs:
        return
    if node.op == "Cast":
        node.attrs["to"] = kind.onnx_type
    elif node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        fill = np.zeros(1, np.float32) if value is None else value.values
        node.attrs["value"] = gs.Constant(f"{node.name}_value", kind.round(fill))


def _replace_captured(node: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    graphs: Iterable[gs.Graph] = list(node.subgraphs(recursive=True))
    for graph in graphs:
        for inner in graph.nodes:
            for i, tensor in enumerate(inner.inputs):
                if tensor is old:
                    inner.inputs[i] = new
        for i, tensor in enumerate(graph.outputs):
            if tensor is old:
                graph.outputs[i] = new
