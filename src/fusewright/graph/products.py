"""How much of what a Conv, Gemm or MatMul reads is seen in its result."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import attribute, peek


def longest_vector(node: gs.Node, slot: int, opset: int) -> float:
    """Length of the longest vector that the stored operand at `slot` multiplies with.

    An error of 1 in each element of the other operand, to either side, is one of this size in the
    result.
    """
    weight = np.asarray(peek(node.inputs[slot]), np.float32)
    if node.op == "Conv":
        axes: tuple[int, ...] = tuple(range(1, weight.ndim))
    elif node.op == "ConvTranspose":
        axes = (0, *range(2, weight.ndim))
    elif weight.ndim == 1:
        axes = (0,)
    else:
        turned = node.op == "Gemm" and bool(attribute(node, ("transA", "transB")[slot], opset))
        axes = (weight.ndim - 1,) if (slot == 0) != turned else (weight.ndim - 2,)
    return float(np.sqrt(np.square(weight).sum(axis=axes)).max(initial=0.0))
