"""Attributes that graphsurgeon loses: empty lists, of which it forgets the type, and rare kinds.

It writes no empty list (`perm` of a Transpose of a scalar, a list of a custom operator), and skips
attributes that hold types, sparse tensors or several tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

_LISTS = ("FLOATS", "INTS", "STRINGS", "TENSORS", "GRAPHS", "SPARSE_TENSORS", "TYPE_PROTOS")


class Empty(list[Any]):
    """An empty list that knows the attribute it is of."""

    def __init__(self, attribute: onnx.AttributeProto) -> None:
        """Holds nothing."""
        super().__init__()
        self.attribute = attribute


def import_graph(proto: onnx.ModelProto) -> gs.Graph:
    """The model as graphsurgeon has it, with every attribute of its nodes.

    Raises:
        ValueError: the graph has no order.
    """
    graph = gs.import_onnx(proto)
    _complete(graph.nodes, proto.graph.node)
    for function, held in zip(graph.functions, proto.functions, strict=True):
        _complete(function.nodes, held.node)
    return graph


def _complete(nodes: Sequence[gs.Node], protos: Iterable[onnx.NodeProto]) -> None:
    for node, proto in zip(nodes, protos, strict=True):
        for attribute in proto.attribute:
            found = node.attrs.get(attribute.name)
            kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
            if isinstance(found, gs.Graph):
                _complete(found.nodes, attribute.g.node)
            elif attribute.ref_attr_name:
                continue
            elif kind in _LISTS and not onnx.helper.get_attribute_value(attribute):
                node.attrs[attribute.name] = Empty(_apart(attribute))
            elif attribute.name not in node.attrs:
                node.attrs[attribute.name] = onnx.helper.get_attribute_value(_apart(attribute))


def _apart(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    """A copy: while a part of a model is referred to, all of it stays in memory."""
    return onnx.AttributeProto.FromString(attribute.SerializeToString())


_export = OnnxExporter.export_attributes


def _export_all(attrs: dict[str, Any]) -> list[onnx.AttributeProto]:
    if not any(isinstance(value, Empty) for value in attrs.values()):
        known: list[onnx.AttributeProto] = _export(attrs)
        return known
    found: list[onnx.AttributeProto] = []
    for name, value in attrs.items():
        found += [value.attribute] if isinstance(value, Empty) else _export({name: value})
    return found


# All ways to write a graph come by here, graphsurgeon's own folding of constants too. It holds for
# the whole process, for other users of graphsurgeon as well: what holds no `Empty` is written as
# before, and none but `import_graph` makes one.
OnnxExporter.export_attributes = staticmethod(_export_all)
