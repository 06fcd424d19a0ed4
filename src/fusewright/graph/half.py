"""float16 models keep their type through onnxruntime's optimizer.

onnxruntime's CPU kernels mostly lack float16, so that it casts to float32 around them, whatever the
optimization level, and writes those Casts to the file: TensorRT would run the model in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper

from fusewright.graph.shapes import infer_shapes

_PREFIX = "InsertedPrecisionFreeCast_"
_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
# Defined by others too, and without a kernel of their own in any type: normalizing puts them back.
_NO_KERNEL = frozenset(
    {
        "Bernoulli",
        "CastLike",
        "CenterCropPad",
        "GroupNormalization",
        "HardSwish",
        "Mish",
        "Range",
        "SequenceMap",
    }
)


def written_out(proto: onnx.ModelProto) -> bool:
    """Whether onnxruntime would write out an operator of a float16 model as its function body."""
    opset = _opset(proto)
    half = onnx.TensorProto.FLOAT16 in _kinds(proto.graph)
    return half and any(_is_function(n, opset) for n in proto.graph.node)


def has_half_bodies(proto: onnx.ModelProto) -> bool:
    """Whether a float16 model has bodies (If, Loop, Scan): Casts inside are not taken out."""
    half = onnx.TensorProto.FLOAT16 in _kinds(proto.graph)
    attributes = (attribute for node in proto.graph.node for attribute in node.attribute)
    return half and any(a.HasField("g") or a.graphs for a in attributes)


def with_casts(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the float16 operators that are functions compute in float32.

    The Casts are named as onnxruntime names its own, and `remove_inserted_casts` takes them out.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    infer_shapes(copy)
    half, opset = _half_tensors(copy.graph), _opset(copy)
    nodes: list[onnx.NodeProto] = []
    fed: set[str] = set()
    for node in copy.graph.node:
        if not _is_function(node, opset):
            nodes.append(node)
            continue
        behind = [name for name in node.output if name in half]
        for name in dict.fromkeys(node.input):
            if name in half and name not in fed:
                fed.add(name)
                nodes.append(_inserted(name, f"{_PREFIX}{name}_", onnx.TensorProto.FLOAT))
        node.input[:] = [f"{_PREFIX}{name}_" if name in half else name for name in node.input]
        node.output[:] = [f"{_PREFIX}{name}" if name in half else name for name in node.output]
        nodes.append(node)
        nodes += [_inserted(f"{_PREFIX}{n}", n, onnx.TensorProto.FLOAT16) for n in behind]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    del copy.graph.value_info[:]
    return copy


def _inserted(source: str, target: str, kind: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], f"{_PREFIX}{target}", to=kind)


def _opset(proto: onnx.ModelProto) -> int:
    return next((e.version for e in proto.opset_import if e.domain in ("", "ai.onnx")), 0)


def _is_function(node: onnx.NodeProto, opset: int) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in _NO_KERNEL:
        return False
    if not onnx.defs.has(node.op_type, opset):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset)
    # The two are there, and onnx's stubs lack them.
    written: bool = schema.has_function or schema.has_context_dependent_function  # type: ignore[attr-defined]
    return written


def _kinds(graph: onnx.GraphProto) -> set[int]:
    """The types of what is fed and stored, and those that are cast to."""
    casts = (a.i for n in graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to")
    return {*_types(graph.input), *(tensor.data_type for tensor in graph.initializer), *casts}


def _half_tensors(graph: onnx.GraphProto) -> set[str]:
    values = [*graph.input, *graph.value_info, *graph.output]
    typed = zip((v.name for v in values), _types(values), strict=True)
    stored = ((tensor.name, tensor.data_type) for tensor in graph.initializer)
    return {name for name, kind in (*typed, *stored) if kind == onnx.TensorProto.FLOAT16}


def _types(values: Iterable[onnx.ValueInfoProto]) -> list[int]:
    return [value.type.tensor_type.elem_type for value in values]


def keep_own_casts(proto: onnx.ModelProto) -> None:
    """Gives other names to the Casts in a file that onnxruntime wrote, in place.

    They are the file's own: what is inserted later goes by these names.
    """
    graph = proto.graph
    fixed = {value.name for value in (*graph.input, *graph.output)}

    def rename(name: str) -> str:
        return f"own_{name}" if _is_inserted(name) and name not in fixed else name

    for node in graph.node:
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)
    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
    for value in graph.value_info:
        value.name = rename(value.name)


def remove_inserted_casts(proto: onnx.ModelProto, folder: Path) -> None:
    """Takes the Casts that onnxruntime put around float16 kernels out again, in place.

    Where it merged one of them with a Cast of the model's own, that one is put back; where it
    folded one of a stored tensor, that is half again.

    Args:
        folder: where weights lie that the model refers to.
    """
    graph = proto.graph
    names, kept = _sort_out(graph)
    names |= _narrow_again(graph, folder)
    if not names and not any(_is_inserted(name) for node in kept for name in node.output):
        return
    infer_shapes(proto)
    float32 = _computed_in_float32(graph)
    nodes: list[onnx.NodeProto] = []
    restored: set[str] = set()

    def cast(source: str, target: str, kind: int) -> str:
        if target not in restored:
            restored.add(target)
            nodes.append(onnx.helper.make_node("Cast", [source], [target], target, to=kind))
        return target

    for node in kept:
        was_half = any(map(_is_inserted, node.output))
        for i, name in enumerate(node.input):
            bare = names.get(name, name.removeprefix(_PREFIX))
            if _is_inserted(name) and not was_half and node.op_type != "Cast":
                node.input[i] = cast(bare, name, onnx.TensorProto.FLOAT)
            elif was_half and name in float32:
                node.input[i] = cast(name, f"{name}_half", onnx.TensorProto.FLOAT16)
            else:
                node.input[i] = bare
        for i, name in enumerate(node.output):
            node.output[i] = names.get(name, name.removeprefix(_PREFIX))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    # The types of before: what an inserted Cast stood behind was float32.
    del graph.value_info[:]
    infer_shapes(proto)


def _narrow_again(graph: onnx.GraphProto, folder: Path) -> dict[str, str]:
    """Stores in half what was cast while it was folded; the name before for that behind."""
    names: dict[str, str] = {}
    kept = {tensor.name: tensor for tensor in graph.initializer if not _is_inserted(tensor.name)}
    for tensor in graph.initializer:
        if _is_inserted(tensor.name):
            name = names[tensor.name] = tensor.name.removeprefix(_PREFIX).removesuffix("_")
            values = onnx.numpy_helper.to_array(tensor, str(folder)).astype(np.float16)
            kept.setdefault(name, onnx.numpy_helper.from_array(values, name))
    if names:
        stored = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept.values()]
        del graph.initializer[:]
        graph.initializer.extend(stored)
    return names


def _computed_in_float32(graph: onnx.GraphProto) -> set[str]:
    declared = (*graph.input, *graph.value_info)
    return {
        v.name
        for v in declared
        if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and not _is_inserted(v.name)
    }


def _sort_out(graph: onnx.GraphProto) -> tuple[dict[str, str], list[onnx.NodeProto]]:
    """The model's own name for each tensor behind or in front of an inserted Cast; the rest."""
    names: dict[str, str] = {}
    kept = []
    for node in graph.node:
        to = next((a.i for a in node.attribute if a.name == "to"), None)
        if node.op_type == "Cast" and _is_inserted(node.output[0]):
            names[node.output[0]] = node.input[0]
        elif node.op_type == "Cast" and to in _HALF and _is_inserted(node.input[0]):
            names[node.input[0]] = node.output[0]
        else:
            kept.append(node)
    return names, kept


def _is_inserted(name: str) -> bool:
    return name.startswith(_PREFIX)


def holds_bfloat16(proto: onnx.ModelProto) -> bool:
    """Whether a model has BF16 tensors, for which onnxruntime's CPU lacks most kernels."""
    stored = {tensor.data_type for tensor in proto.graph.initializer}
    declared = {
        v.type.tensor_type.elem_type
        for v in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    }
    return onnx.TensorProto.BFLOAT16 in stored | declared
