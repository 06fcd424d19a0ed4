"""One of two models that are compared, indexed by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass
class Side:
    """One model, by name."""

    proto: onnx.ModelProto
    producer: dict[str, int] = field(default_factory=dict)
    stored: dict[str, onnx.TensorProto] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    reads: list[tuple[str, ...]] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    same: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> Side:
        """Indexes a model."""
        side = cls(proto, nodes=list(proto.graph.node))
        for i, node in enumerate(side.nodes):
            side.reads.append(tuple(reads_of(node)))
            side.producer.update({name: i for name in node.output if name})
        side.stored = {t.name: t for t in proto.graph.initializer}
        side.given = frozenset(v.name for v in proto.graph.input)
        return side

    def has(self, name: str) -> bool:
        """Whether the name is a computed or fed tensor here."""
        return name in self.producer or name in self.given


def is_same_stored(name: str, old: Side, new: Side) -> bool:
    """Whether `name` is stored in both models with the same value, or in neither."""
    found = new.same.get(name)
    if found is None:
        one, other = old.stored.get(name), new.stored.get(name)
        found = one is other or (one is not None and other is not None and one == other)
        new.same[name] = found
    return found


def attributes_of(node: onnx.NodeProto) -> list[bytes]:
    """A node's attributes in one order, comparable."""
    return sorted(a.SerializeToString() for a in node.attribute)


def reads_of(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those that its bodies take from around them too."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type not in _GRAPHS:
            continue
        for graph in (attribute.g, *attribute.graphs):
            inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            inner |= {name for n in graph.node for name in n.output}
            yield from (r for n in graph.node for r in reads_of(n) if r and r not in inner)
            yield from (v.name for v in graph.output if v.name not in inner)
