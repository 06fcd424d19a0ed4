"""Families of operators that the rules share."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fusewright.graph.families import LAYOUT, POINTWISE, REDUCTIONS

_LIGHT = POINTWISE | LAYOUT | REDUCTIONS
# The result is no more wrong than the operand.
STEADY = frozenset(
    {
        "Abs", "Add", "Clip", "Identity", "LeakyRelu", "Max", "Min", "Neg", "Relu", "Sigmoid",
        "Sub", "Sum", "Tanh",
    }
)  # fmt: skip
# They look at no more than the sizes or at integers, and read either type as it comes.
FLEXIBLE = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear", "Shape", "Size"})


def is_light(node: gs.Node) -> bool:
    """Whether the node may be float32 only to spare a Cast."""
    return node.op in _LIGHT or node.op in FLEXIBLE
