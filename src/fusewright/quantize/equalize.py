"""Parts of unlike range in one tensor, the edit: c in front of the layers, 1/c in their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.edit import Names, detach, put_in_front
from fusewright.graph.layout import data_readers
from fusewright.graph.walk import captured, is_constant, peek, producer
from fusewright.graph.workspace import Workspace
from fusewright.plan.plan import Group, Plan, node_index
from fusewright.quantize.columns import by_channel
from fusewright.quantize.migrate import Applied
from fusewright.quantize.unlike import HOMOGENEOUS, Site, in_front, is_join


@dataclass
class Equalized:
    """What was edited, and how to take it back."""

    stored: Applied = field(default_factory=Applied)
    added: list[gs.Node] = field(default_factory=list)
    back: list[Callable[[], None]] = field(default_factory=list)

    def undo(self, graph: gs.Graph) -> None:
        """Gives graph, groups and weights back what they had."""
        for step in reversed(self.back):
            step()
        mine = {id(node) for node in self.added}
        graph.nodes = [node for node in graph.nodes if id(node) not in mine]
        for node in self.added:
            detach(node)
        self.stored.undo()


def equalize(
    plan: Plan, sites: Sequence[tuple[Site, np.ndarray]], workspace: Workspace
) -> Equalized:
    """Multiplies what the layers of each site read by its factors, their weights by 1/c; in place.

    A Concat that is read by these layers alone gets a copy whose inputs are multiplied: pairs go
    on moving through it, and each input keeps a pair of its own for who else reads it.

    Args:
        sites: each with c, powers of two, [channels].
        workspace: where the changed weights lie.
    """
    edit = _Edit(plan)
    for site, factors in sites:
        edit.site(site, factors, workspace)
    return edit.done


class _Edit:
    def __init__(self, plan: Plan) -> None:
        self._plan, self._graph, self._opset = plan, plan.model.graph, plan.model.opset
        self._names, self._nodes = Names(self._graph), node_index(self._graph)
        self._tensors = self._graph.tensors()
        self._fixed = {id(t) for t in self._graph.outputs}
        for node in self._graph.nodes:
            self._fixed.update(id(t) for t in captured(node))
        self._run: list[gs.Node] = []
        self.done = Equalized()

    def site(self, site: Site, factors: np.ndarray, workspace: Workspace) -> None:
        tensor, layers = self._tensors[site.tensor], [self._nodes[n] for n in site.layers]
        self._run = []
        own = {id(node) for node in layers}
        new = self._scaled(tensor, site.axis, factors, own)
        for weight in {id(node.inputs[1]): node for node in layers}.values():
            divided = peek(weight.inputs[1]) / by_channel(factors, weight, self._opset)
            self.done.stored.store(weight.inputs[1], divided, workspace)
        for node in layers:
            self._reconnect(node, tensor, new)
        self._rename(site, new.name)
        put_in_front(self._graph, [self._run])
        self.done.added += self._run

    def _reconnect(self, node: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
        def back() -> None:
            node.inputs[0] = old

        node.inputs[0] = new
        self.done.back.append(back)

    def _rename(self, site: Site, new: str) -> None:
        for name in site.groups:
            group = self._plan.group(name)

            def back(group: Group = group, inputs: tuple[str, ...] = group.inputs) -> None:
                group.inputs = inputs

            self.done.back.append(back)
            group.inputs = tuple(new if name == site.tensor else name for name in group.inputs)

    def _scaled(
        self, tensor: gs.Tensor, axis: int, factors: np.ndarray, readers: set[int]
    ) -> gs.Tensor:
        """x·c; `readers` are those of `tensor` that want it."""
        if np.all(factors == 1.0):
            return tensor
        shaped = np.asarray(factors, np.float32).reshape(-1, *(1 for _ in range(axis - 1)))
        if is_constant(tensor):
            values = np.asarray(peek(tensor) * shaped, np.float32)
            return gs.Constant(self._names.fresh(f"{tensor.name}_equalized"), values)
        node = producer(tensor)
        others = [reader for reader in data_readers(tensor) if id(reader) not in readers]
        if node is not None and not others and id(tensor) not in self._fixed:
            if is_join(node, axis, self._opset):
                return self._copied(node, self._joined(node, axis, factors))
            if node.op in HOMOGENEOUS and self._joins_behind(node, axis, factors.size):
                source = in_front(node, axis, factors.size, self._opset)
                if source is not None:
                    scaled = self._scaled(*source, factors, {id(node)})
                    return self._copied(node, [scaled, *node.inputs[1:]])
        if np.all(factors == factors[0]):
            shaped = np.asarray(factors[0], np.float32)
        stored = gs.Constant(self._names.fresh(f"{tensor.name}_factor"), shaped)
        return self._add("Mul", tensor.name, [tensor, stored], tensor)

    def _joined(self, node: gs.Node, axis: int, factors: np.ndarray) -> list[gs.Tensor]:
        scaled, at = [], 0
        for source in node.inputs:
            size = int(source.shape[-axis])
            scaled.append(self._scaled(source, axis, factors[at : at + size], {id(node)}))
            at += size
        return scaled

    def _joins_behind(self, node: gs.Node, axis: int, channels: int) -> bool:
        """Whether a Concat of channels lies in front of what hands them on."""
        found = in_front(node, axis, channels, self._opset)
        maker = None if found is None else producer(found[0])
        if maker is None or found is None:
            return False
        if is_join(maker, found[1], self._opset):
            return True
        return maker.op in HOMOGENEOUS and self._joins_behind(maker, found[1], channels)

    def _copied(self, node: gs.Node, inputs: list[gs.Tensor]) -> gs.Tensor:
        return self._add(node.op, node.outputs[0].name, inputs, node.outputs[0], node.attrs)

    def _add(
        self,
        op: str,
        name: str,
        inputs: list[gs.Tensor],
        like: gs.Tensor,
        attrs: Mapping[str, object] | None = None,
    ) -> gs.Tensor:
        new = gs.Variable(self._names.fresh(f"{name}_equalized"), np.float32, like.shape)
        named = self._names.fresh(f"{name}_Equalized{op}")
        self._run.append(gs.Node(op, named, dict(attrs or {}), inputs, [new]))
        return new
