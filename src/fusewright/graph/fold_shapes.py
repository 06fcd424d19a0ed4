"""Folding of shape arithmetic that onnxruntime has to leave: what is known of dynamic shapes.

A model with a dynamic batch keeps thousands of Shape, Gather and Concat nodes (TorchScript's Swin:
2,000) although all sizes but the batch are numbers. Here
- integers that are known become stored constants,
- a Reshape to a computed shape gets a stored one, with -1, or 0 for what it copies,
- shape tensors that hold the same are computed once, and from sizes and numbers alone,
- what changes nothing (Reshape, Expand, Slice to the same shape) goes, and an Expand that the
  operators behind it do anyway.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import groupby

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.graph.collector import without_gc
from fusewright.graph.dims import Dim, Shape
from fusewright.graph.edit import Names, bypass, redirect, sweep
from fusewright.graph.facts import Facts, Values, kind_of
from fusewright.graph.model import Model
from fusewright.graph.symbolic import propagate, write_shape, write_shapes
from fusewright.graph.symbolic.layers import broadcast
from fusewright.graph.walk import STANDARD_DOMAINS, input_at, is_constant, producer


def computes_shapes(proto: onnx.ModelProto) -> bool:
    """Whether anything in the model depends on the shape of a tensor."""
    return any(node.op_type in ("Shape", "Size") for node in proto.graph.node)


def fold_shapes(model: Model) -> int:
    """Folds the shape arithmetic of `model`, in place, and annotates every tensor's shape.

    Returns the number of changes. Frozen nodes, and what they read, stay as they are.
    """
    with without_gc():
        return _fold_shapes(model)


def _fold_shapes(model: Model) -> int:
    graph, facts = model.graph, propagate(model.graph)
    fold = _Fold(model, facts)
    nodes = [node for node in graph.nodes if node.name not in model.frozen]
    count = sum(fold.fix_target(node) for node in nodes if node.op == "Reshape")
    count += sum(fold.store(node) for node in nodes)
    count += sum(fold.share(node) for node in nodes)
    write_shapes(graph, facts)
    sweep(graph)
    nodes = [node for node in graph.nodes if node.op in _SHAPERS]
    count += sum(fold.skip(node) for node in nodes if node.name not in model.frozen)
    sweep(graph)
    return count


_SHAPERS = ("Expand", "Reshape", "Slice", "Transpose")
_BROADCASTING = ("Add", "And", "Cast", "Div", "Equal", "Mul", "Not", "Or", "Pow", "Sub", "Where")


class _Fold:
    """The single edits; each says whether it changed anything."""

    def __init__(self, model: Model, facts: Facts) -> None:
        self.model, self.graph, self.facts = model, model.graph, facts
        self.names = Names(model.graph)
        self.held = {id(tensor) for tensor in model.graph.outputs} | _conditions(model.graph, facts)
        self.first: dict[Hashable, gs.Tensor] = {}

    def fix_target(self, node: gs.Node) -> bool:
        """Gives a Reshape a stored target."""
        if node.domain not in STANDARD_DOMAINS or is_constant(node.inputs[1]):
            return False
        before, after = self.facts.shape(node.inputs[0]), self.facts.shape(node.outputs[0])
        target = None if after is None else stored_target(before, after)
        if target is None:
            return False
        array = np.array(target, np.int64)
        node.inputs[1] = gs.Constant(self.names.fresh(f"{node.name}_target"), array)
        node.attrs.pop("allowzero", None)
        return True

    def store(self, node: gs.Node) -> bool:
        """Makes a constant of the output whose integers are known."""
        arrays = [(t, self._integers(t)) for t in node.outputs if t.outputs]
        if not arrays or any(array is None for _, array in arrays):
            return False
        node.outputs.clear()
        for tensor, array in arrays:
            tensor.to_constant(array)
        return True

    def _integers(self, tensor: gs.Tensor) -> np.ndarray | None:
        value, kind = self.facts.value(tensor), kind_of(tensor)
        if value is None or kind not in ("i", "u", "b") or not self._is_free(tensor):
            return None
        if any(type(element) not in (int, bool) for element in value.flat):
            return None
        if kind != "b":
            limits = np.iinfo(tensor.dtype)
            if not all(limits.min <= element <= limits.max for element in value.flat):
                return None
        return value.astype(tensor.dtype)

    def _is_free(self, tensor: gs.Tensor) -> bool:
        """Whether neither the interface, nor an If or a frozen node, has a hold on the tensor."""
        readers = (node.name for node in tensor.outputs)
        return id(tensor) not in self.held and self.model.frozen.isdisjoint(readers)

    def share(self, node: gs.Node) -> bool:
        """Lets the consumers of a shape tensor read the first one that holds the same."""
        if len(node.outputs) != 1 or not node.outputs[0].outputs:
            return False
        tensor = node.outputs[0]
        value = self.facts.value(tensor)
        if value is None or kind_of(tensor) != "i" or not _is_symbolic(value):
            return False
        first = self.first.setdefault(_key(tensor, value), tensor)
        if not self._is_free(tensor):
            return False
        if first is tensor:
            return node.op == "Where" and value.ndim == 1 and self._respell(node, value)
        redirect(tensor, first)
        return True

    def _respell(self, node: gs.Node, value: Values) -> bool:
        """torch's expand(batch, -1, -1), a Where over three shapes → Concat(batch, [1, 1])."""
        parts: list[gs.Tensor] = []
        for symbolic, run in groupby(value, lambda element: isinstance(element, Dim)):
            elements = list(run)
            if not symbolic:
                array = np.array(elements, node.outputs[0].dtype)
                parts.append(gs.Constant(self.names.fresh(f"{node.name}_sizes"), array))
                continue
            for element in elements:
                source = self.first.get(_key(node.outputs[0], np.array([element], object)))
                if source is None:
                    return False
                parts.append(source)
        node.op, node.attrs, node.inputs = "Concat", {"axis": 0}, parts
        return True

    def skip(self, node: gs.Node) -> bool:
        """Takes out what does not change its input, or no more than its consumers do."""
        if node.domain not in STANDARD_DOMAINS or not self._is_free(node.outputs[0]):
            return False
        before, after = self.facts.shape(node.inputs[0]), self.facts.shape(node.outputs[0])
        if after is None or None in after:
            return False
        same = before == after and self._keeps_order(node)
        if same or (node.op == "Expand" and self._is_implied(node)):
            return bypass(self.graph, node, node.inputs[0])
        return False

    def _keeps_order(self, node: gs.Node) -> bool:
        if node.op == "Transpose":
            perm = node.attrs.get("perm")
            return perm is not None and perm == sorted(perm)
        if node.op == "Slice" and input_at(node, 4) is not None:
            steps = self.facts.ints_at(node, 4)
            return steps is not None and all(step == 1 for step in steps)
        return True

    def _is_implied(self, node: gs.Node) -> bool:
        """Whether all that read an Expand, or what they make of it, broadcast to the same shape.

        transformers' mask of a ViT: where(expand(True, batch), 0, -inf), added to each q·kᵀ.
        """
        narrow: dict[int, tuple[gs.Tensor, Shape | None]] = {}
        x, waiting = node.inputs[0], [node.outputs[0]]
        narrow[id(waiting[0])] = waiting[0], self.facts.shape(x)
        while waiting:
            tensor = waiting.pop()
            if not tensor.outputs or not self._is_free(tensor):
                return False
            for reader in tensor.outputs:
                if reader.op not in _BROADCASTING or reader.domain not in STANDARD_DOMAINS:
                    return False
                shapes = (narrow.get(id(t), (t, self.facts.shape(t)))[1] for t in reader.inputs)
                without, result = broadcast(*shapes), reader.outputs[0]
                if without is None or None in without:
                    return False
                if without != self.facts.shape(result):
                    narrow[id(result)] = result, without
                    waiting.append(result)
        for tensor, shape in narrow.values():
            self.facts.shapes[id(tensor)] = shape
            write_shape(tensor, shape)
        return True


def _conditions(graph: gs.Graph, facts: Facts) -> set[int]:
    """What the conditions of Ifs are computed from (by `id`).

    Of an If whose condition is stored onnxruntime makes nodes that the file does not name.
    """
    found: set[int] = set()
    waiting = [node.inputs[0] for node in graph.nodes if node.op == "If"]
    while waiting:
        tensor = waiting.pop()
        maker = producer(tensor)
        if id(tensor) not in found and maker is not None and facts.value(tensor) is not None:
            found.add(id(tensor))
            waiting += maker.inputs
    return found


def stored_target(before: Shape | None, after: Shape) -> list[int] | None:
    """A Reshape's target that gives the shape `after` whatever the symbols are; None: no such.

    One dimension that is no number is -1; of several, those that keep their position are 0.
    """
    if any(isinstance(dim, int) and dim == 0 for dim in after):
        return None
    target = [dim if isinstance(dim, int) else -1 for dim in after]
    for i, dim in enumerate(after):
        stays = before is not None and i < len(before) and dim is not None and before[i] == dim
        if isinstance(dim, Dim) and stays and target.count(-1) > 1:
            target[i] = 0
    return target if target.count(-1) <= 1 else None


def _key(tensor: gs.Tensor, value: Values) -> Hashable:
    return str(tensor.dtype), value.shape, tuple(value.flat)


def _is_symbolic(value: Values) -> bool:
    known = all(element is not None for element in value.flat)
    return known and any(isinstance(element, Dim) for element in value.flat)
