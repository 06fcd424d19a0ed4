"""Between onnx protos and the `Model` that the stages edit."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.logger import G_LOGGER

from fusewright.errors import ModelError
from fusewright.graph.attributes import import_graph
from fusewright.graph.collector import without_gc
from fusewright.graph.load import Source
from fusewright.graph.model import Model, trace_origins
from fusewright.graph.shapes import infer_shapes
from fusewright.graph.walk import is_constant, toposort
from fusewright.graph.workspace import Workspace, refer_to

# graphsurgeon prints its warnings to stdout, where a pipeline expects our output.
G_LOGGER.severity = G_LOGGER.ERROR


def to_model(proto: onnx.ModelProto, source: Source, workspace: Workspace | None = None) -> Model:
    """Imports a cleaned proto: types inferred, nodes named and sorted, constants as constants.

    Args:
        proto: what became of the file so far, local functions inlined.
        source: the file, whose names the nodes are traced back to.
        workspace: where the weights lie that the proto only refers to.
    """
    with without_gc():
        model = _to_model(proto, source)
        if workspace is not None:
            refer_to(model.graph, workspace)
    return model


def _to_model(proto: onnx.ModelProto, source: Source) -> Model:
    try:
        infer_shapes(proto)
        graph = import_graph(proto)
        graph.nodes = toposort(graph.nodes)
    except ValueError as error:
        raise ModelError(f"{source.path}: {error}") from error
    graph.functions = []
    for node in graph.nodes:
        node.domain = None if node.domain in ("", "ai.onnx") else node.domain
    _lift_constants(graph)
    _name_nodes(graph)
    _restore_interface(graph, source)
    origins = trace_origins(graph.nodes, set(source.names), source.producers)
    return Model(source.path, graph, origins, source.interface)


def to_proto(graph: gs.Graph) -> onnx.ModelProto:
    """Exports a graph; only the operator domains that it uses are imported."""
    used = {n.domain or "" for n in graph.nodes} | {""}
    used |= {n.domain or "" for g in graph.subgraphs(recursive=True) for n in g.nodes}
    graph.import_domains = [e for e in graph.import_domains if (e.domain or "") in used]
    with without_gc():
        proto: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    # graphsurgeon writes the stored tensors that nodes read, and no others.
    written = {tensor.name for tensor in proto.graph.initializer}
    unread = [t for t in graph.outputs if is_constant(t) and t.name not in written]
    proto.graph.initializer.extend(OnnxExporter.export_tensor_proto(t) for t in unread)
    return proto


def _lift_constants(graph: gs.Graph) -> None:
    """Turns Constant nodes of the main graph into stored tensors; subgraphs keep theirs."""
    outputs = {id(t) for t in graph.outputs}
    kept = []
    for node in graph.nodes:
        value = _constant_value(node)
        if value is None or id(node.outputs[0]) in outputs:
            kept.append(node)
            continue
        tensor = node.outputs[0]
        node.outputs.clear()
        tensor.to_constant(value)
    graph.nodes = kept


def _constant_value(node: gs.Node) -> np.ndarray | None:
    if node.op != "Constant" or node.domain:
        return None
    kinds = {"value_float": np.float32, "value_int": np.int64}
    kinds |= {"value_floats": np.float32, "value_ints": np.int64}
    for name, value in node.attrs.items():
        if name == "value":
            array: np.ndarray = value.values
            return array
        if name in kinds:
            return np.array(value, dtype=kinds[name])
    return None


def _name_nodes(graph: gs.Graph) -> None:
    used: set[str] = set()
    for node in graph.nodes:
        wanted = node.name or (node.outputs[0].name if node.outputs else node.op)
        name, number = wanted, 1
        while name in used:
            number += 1
            name = f"{wanted}_{number}"
        node.name = name
        used.add(name)


def _restore_interface(graph: gs.Graph, source: Source) -> None:
    # onnxruntime writes inferred shapes over the declared ones; the file's own are kept.
    declared = {v.name: v for v in (*source.proto.graph.input, *source.proto.graph.output)}
    imported = import_graph(
        onnx.helper.make_model(onnx.helper.make_graph([], "interface", [], list(declared.values())))
    )
    shapes = {t.name: t.shape for t in imported.outputs}
    for tensor in (*graph.inputs, *graph.outputs):
        if tensor.name in shapes and isinstance(tensor, gs.Variable):
            tensor.shape = shapes[tensor.name]
