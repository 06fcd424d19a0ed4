"""Which number formats a file asks a builder for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import TensorProto

from fusewright.engine.formats import BF16, FP4, FP8, FP16, INT4, INT8
from fusewright.graph.load import with_inner

_FORMATS = {
    "INT8": INT8,
    "UINT8": INT8,
    "FLOAT16": FP16,
    "BFLOAT16": BF16,
    "FLOAT8E4M3FN": FP8,
    "INT4": INT4,
    "FLOAT4E2M1": FP4,
}
# Older releases of onnx lack the newer types, and then no file has them.
_BY_NUMBER = {
    getattr(TensorProto, name): text
    for name, text in _FORMATS.items()
    if hasattr(TensorProto, name)
}
_TO = {"Cast": "to", "QuantizeLinear": "output_dtype"}


def formats_of(model: onnx.ModelProto) -> frozenset[str]:
    """The formats below FP32 that a model's tensors, casts and zero-points have."""
    nodes = (*model.graph.node, *(node for f in model.functions for node in f.node))
    found = [t.data_type for t in model.graph.initializer]
    ends = (*model.graph.input, *model.graph.output)
    found += [value.type.tensor_type.elem_type for value in ends]
    found += _in_nodes(with_inner(nodes))
    return frozenset(_BY_NUMBER[number] for number in found if number in _BY_NUMBER)


def _in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[int]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name == _TO.get(node.op_type):
                yield attribute.i
            elif attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t.data_type
