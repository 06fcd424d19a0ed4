"""Whole numbers held as floats: positions, counts, lengths, flags."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from fusewright.graph.layout import moved_inputs
from fusewright.graph.walk import is_constant, peek, producer
from fusewright.precision.flow import Flow

_FRACTIONS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
)
_ROUNDING = frozenset({"Ceil", "Floor", "Round", "Sign"})
_KEEPING = frozenset(
    {"Abs", "Add", "CumSum", "Max", "Min", "Mul", "Neg", "Range", "ReduceMax", "ReduceSum", "Sub"}
)
_DEEPEST = 12


def is_whole(flow: Flow, tensor: gs.Tensor, depth: int = _DEEPEST) -> bool:
    """Whether every element is a whole number, by what computes it.

    Sums and products of many are not followed further than `depth` nodes back.
    """
    if is_constant(tensor):
        array = peek(tensor)
        return bool(np.isfinite(array).all() and (array == np.rint(array)).all())
    node = producer(tensor)
    if node is None or not depth:
        return False
    if node.op == "Cast":
        return flow.types.of(node.inputs[0]) not in _FRACTIONS
    if node.op in _ROUNDING:
        return True
    if node.op in _KEEPING or node.op == "Where":
        data = node.inputs[1:] if node.op == "Where" else node.inputs
        return all(is_whole(flow, t, depth - 1) for t in data)
    moved = moved_inputs(node, flow.opset)
    return bool(moved) and all(is_whole(flow, t, depth - 1) for t in moved)
