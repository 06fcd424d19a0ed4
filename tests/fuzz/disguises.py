"""What exporters and tools make of a finished model without changing its meaning."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

CONVERTED = (9, 10, 13, 17, 19, 21, 22)
Disguise = Callable[[onnx.ModelProto, random.Random], onnx.ModelProto]


def shuffled(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Nodes in another order that is still topological."""
    left, done = list(model.graph.node), {""}
    done |= {v.name for v in model.graph.input} | {t.name for t in model.graph.initializer}
    order: list[onnx.NodeProto] = []
    made = {name for node in left for name in node.output}
    while left:
        ready = [n for n in left if all(i in done or i not in made for i in _reads(n))]
        node = draw.choice(ready)
        left = [n for n in left if n is not node]
        done.update(node.output)
        order.append(node)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in order]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, in its bodies too."""
    bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return set(node.input) | {name for g in bodies for n in g.node for name in _reads(n)}


def constants(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Stored tensors as Constant nodes."""
    taken = [t for t in model.graph.initializer if draw.random() < 0.7]
    outputs = {v.name for v in model.graph.output}
    taken = [t for t in taken if t.name not in outputs]
    nodes = [helper.make_node("Constant", [], [t.name], f"{t.name}_node", value=t) for t in taken]
    kept = [t for t in model.graph.initializer if t not in taken]
    rest = [*nodes, *model.graph.node]
    rest = [onnx.NodeProto.FromString(n.SerializeToString()) for n in rest]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(rest)
    model.graph.initializer.extend(kept)
    return model


def listed(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Stored tensors that are inputs too, as IR versions before 4 need it."""
    for tensor in model.graph.initializer:
        if draw.random() < 0.5:
            shape = list(tensor.dims)
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, shape)
            model.graph.input.append(value)
    return model


def stored_output(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """A stored tensor that is an output."""
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    if floats:
        tensor = draw.choice(floats)
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.output.append(value)
    return model


def noise(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Identity, Cast and Dropout in front of inputs of nodes."""
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    nodes = []
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in kinds and draw.random() < 0.15:
                new = f"{name}_n{len(nodes)}"
                nodes.append(_nothing(name, new, kinds[name], draw))
                node.input[i] = new
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _nothing(old: str, new: str, kind: int, draw: random.Random) -> onnx.NodeProto:
    op = draw.choice(["Identity", "Cast", "Dropout"])
    if op == "Dropout" and kind == TensorProto.FLOAT:
        return helper.make_node("Dropout", [old], [new])
    if op == "Cast":
        return helper.make_node("Cast", [old], [new], to=kind)
    return helper.make_node("Identity", [old], [new])


def unnamed(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Nodes without a name, all or some."""
    share = draw.choice([0.5, 1.0])
    for node in model.graph.node:
        if draw.random() < share:
            node.name = ""
    return model


def odd_names(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Names with spaces, slashes, dots, other scripts; node and tensor of one name."""
    texts = ["a b", "/model/layer.0/Add_output_0", "层", "x::y", "%7", "0", "fusewright"]
    for i, node in enumerate(model.graph.node):
        if draw.random() < 0.5:
            node.name = f"{draw.choice(texts)}{i}"
    return model


def older_ir(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    least = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = draw.randint(max(4, least), 10 if least <= 10 else least)
    return model


def converted(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Another opset, by onnx's converter, where that can."""
    try:
        return onnx.version_converter.convert_version(model, draw.choice(CONVERTED))
    except RuntimeError:  # an operator that the older opset lacks
        return model


def function(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """One node as a local function."""
    plain = [
        n for n in model.graph.node if n.op_type not in ("If", "Loop", "Scan") and all(n.input)
    ]
    if not plain:
        return model
    node = draw.choice(plain)
    inputs, outputs = (
        [f"{p}{i}" for i in range(len(names))]
        for p, names in (("i", node.input), ("o", node.output))
    )
    inner = onnx.NodeProto.FromString(node.SerializeToString())
    del inner.input[:], inner.output[:]
    inner.input.extend(inputs)
    inner.output.extend(outputs)
    made = helper.make_function(
        "mine", f"F{node.op_type}", inputs, outputs, [inner], list(model.opset_import)
    )
    model.functions.append(made)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    node.op_type, node.domain = made.name, "mine"
    del node.attribute[:]
    return model


def sparse(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Weights that are mostly zeros, stored sparse."""
    for tensor in list(model.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or draw.random() < 0.3:
            continue
        array = numpy_helper.to_array(tensor).copy()
        if not array.any():
            continue
        places = np.flatnonzero(array).astype(np.int64)
        values = numpy_helper.from_array(array.flatten()[places], tensor.name)
        indices = numpy_helper.from_array(places, f"{tensor.name}_places")
        sparse_one = helper.make_sparse_tensor(values, indices, list(tensor.dims))
        model.graph.sparse_initializer.append(sparse_one)
        model.graph.initializer.remove(tensor)
    return model


def typed_storage(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Values in `float_data` and `int64_data` instead of raw bytes."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype in (np.float32, np.int64) and draw.random() < 0.6:
            flat = array.flatten().tolist()
            tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, flat))
    return model


def extras(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Unused tensors, documents, metadata and imports, value infos."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    model.doc_string = "words\nmore words"
    helper.set_model_props(model, {"author": "nobody"})
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return onnx.shape_inference.infer_shapes(model) if draw.random() < 0.5 else model


def twice_stored(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Two stored tensors of the same contents, two nodes that compute the same."""
    for node in list(model.graph.node):
        if node.op_type in ("Relu", "Transpose", "Add") and draw.random() < 0.3:
            twin = onnx.NodeProto.FromString(node.SerializeToString())
            twin.name, twin.output[0] = f"{node.name}_twin", f"{node.output[0]}_twin"
            readers = [n for n in model.graph.node if node.output[0] in n.input]
            if len(readers) > 1:
                index = list(readers[0].input).index(node.output[0])
                readers[0].input[index] = twin.output[0]
                model.graph.node.insert(list(model.graph.node).index(node), twin)
    return model


def half(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """A file in FP16, its interface too."""
    _halve_graph(model.graph)
    return model


def _halve_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _halve(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.type == onnx.AttributeProto.TENSOR:
                _halve(attribute.t)
            if attribute.type == onnx.AttributeProto.GRAPH:
                _halve_graph(attribute.g)
    del graph.value_info[:]


def _halve(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        array = numpy_helper.to_array(tensor)
        limit = np.float32(np.finfo(np.float16).max)
        finite = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
        tensor.CopyFrom(numpy_helper.from_array(finite.astype(np.float16), tensor.name))


def more_outputs(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """A tensor from inside as a further output."""
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {v.name: v for v in inferred.graph.value_info}
    outputs = {v.name for v in model.graph.output}
    made = [
        n.output[0] for n in model.graph.node if n.output[0] in known and n.output[0] not in outputs
    ]
    if made:
        model.graph.output.append(known[draw.choice(made)])
    return model


def optimized(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """What onnxruntime's optimizer writes: operators of its own too, at the extended level."""
    level = draw.choice(["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model.SerializeToString(), options)
        return onnx.load(path)


DISGUISES: dict[str, Disguise] = {
    f.__name__: f
    for f in (
        shuffled, constants, listed, stored_output, noise, unnamed, odd_names, older_ir, converted,
        function, sparse, typed_storage, extras, twice_stored, half, more_outputs,
        optimized,
    )
}  # fmt: skip
