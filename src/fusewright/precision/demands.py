"""What an operator asks of the tensors it reads, beyond their magnitude."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from fusewright.graph.walk import input_at, scalar
from fusewright.precision.flow import Flow


def divisors(flow: Flow) -> Iterator[gs.Tensor]:
    """The computed float32 tensors whose smallest elements matter as much as the largest."""
    for node in flow.graph.nodes:
        slot = divisor_slot(node)
        if slot is not None and slot in flow.slots(node).inputs and node.inputs[slot].inputs:
            yield node.inputs[slot]


def divisor_slot(node: gs.Node) -> int | None:
    """The input that the node divides by, takes the logarithm or a root of."""
    if node.op == "Div":
        return 1
    if node.op in ("Reciprocal", "Log", "Sqrt"):
        return 0
    if node.op == "Pow":
        exponent = input_at(node, 1)
        power = None if exponent is None else scalar(exponent)
        return None if power is not None and power >= 1 and power.is_integer() else 0
    return None
