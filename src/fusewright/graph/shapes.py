"""Shapes and types of every tensor, inferred once, without touching the weights."""

from __future__ import annotations

import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs

from fusewright.graph.light import without_weights
from fusewright.graph.walk import toposort


def infer_shapes(proto: onnx.ModelProto) -> None:
    """Adds `value_info` for every tensor whose type can be inferred, in place."""
    light = without_weights(proto)
    _sort(light.graph)
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(inferred.graph.value_info)


def _sort(graph: onnx.GraphProto) -> None:
    """Sorts the nodes where they are not: inference reads them once, from first to last."""
    known = {v.name for v in graph.input} | {t.name for t in graph.initializer} | {""}
    for node in graph.node:
        if not known.issuperset(node.input):
            break
        known.update(node.output)
    else:
        return
    model = gs.import_onnx(onnx.helper.make_model(graph))
    order = {t.name: i for i, n in enumerate(toposort(model.nodes)) for t in n.outputs}
    nodes = sorted(graph.node, key=lambda node: order.get(next(iter(node.output), ""), 0))
    del graph.node[:]
    graph.node.extend(nodes)
