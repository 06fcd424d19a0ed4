"""Why onnxruntime does not load a model, in words that name the node and say what to do."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import onnx.shape_inference
from google.protobuf.message import DecodeError

from fusewright.graph.shapes import infer_shapes

_NO_KERNEL = re.compile(
    r"Could not find an implementation for (?P<op>\w+)\(\d+\) node with name '(?P<node>[^']*)'"
)
_WRONG_TYPE = re.compile(
    r"Type 'tensor\((?P<type>\w+)\)' of input parameter \((?P<tensor>.*?)\) of operator"
    r" \((?P<op>\w+)\) in node \((?P<node>.*?)\) is invalid"
)
_TITLES = {"double": "FP64", "bfloat16": "BF16", "float16": "FP16"}
FUSED = "com.microsoft"
"""The domain of operators that onnxruntime's optimizer writes; `com.microsoft.nchwc` is another."""
IN_FLOAT32 = "export the model in float32"
"""What to do where onnxruntime's CPU lacks a type."""


def explained(reason: str, model: bytes | str | Path) -> str | None:
    """A message of onnxruntime's in words, where it is a type that its CPU lacks; else None.

    Args:
        reason: its message.
        model: what it was given; read again only where the message names a node.
    """
    wrong = _WRONG_TYPE.search(reason)
    if wrong is not None:
        text, kind = f"'{wrong['tensor']}' of node '{wrong['node']}'", wrong["type"]
        op = wrong["op"]
    else:
        missing = _NO_KERNEL.search(reason)
        proto = None if missing is None else _read(model)
        if missing is None or proto is None:
            return None
        if any(n.name == missing["node"] and n.domain.startswith(FUSED) for n in proto.graph.node):
            return (
                f"node '{missing['node']}' ({missing['op']}) is one that onnxruntime's optimizer"
                " writes for other devices, and neither its CPU nor TensorRT has it: give the file"
                " from before that optimizer"
            )
        found = _odd_input(missing["node"], proto)
        if found is None:
            return None
        tensor, kind = found
        text, op = f"'{tensor}' of node '{missing['node']}'", missing["op"]
    if kind not in _TITLES:
        return None
    return f"{text} is {_TITLES[kind]}, and onnxruntime's CPU has no {op} for it: {IN_FLOAT32}"


def _read(model: bytes | str | Path) -> onnx.ModelProto | None:
    try:
        if isinstance(model, bytes):
            return onnx.ModelProto.FromString(model)
        return onnx.load(str(model), load_external_data=False)
    except (OSError, DecodeError):
        return None


def _odd_input(node: str, proto: onnx.ModelProto) -> tuple[str, str] | None:
    """The first tensor that a node reads in a type that onnxruntime mostly lacks, and the type."""
    try:
        infer_shapes(proto)
    except onnx.shape_inference.InferenceError:
        return None
    graph = proto.graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    read = next((n.input for n in graph.node if n.name == node), ())
    for name in read:
        kind = onnx.TensorProto.DataType.Name(kinds.get(name, 0)).lower()
        if kind in _TITLES:
            return name, kind
    return None
