"""A Linear in its normal form: MatMul with a stored matrix, then its bias."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.walk import is_constant, producer


@dataclass(frozen=True)
class Linear:
    """A matrix product with a stored matrix, and its bias where there is one."""

    x: gs.Tensor
    weight: gs.Constant
    bias: gs.Constant | None
    nodes: tuple[gs.Node, ...]

    @property
    def output(self) -> gs.Tensor:
        """What it computes."""
        return self.nodes[-1].outputs[0]


def linear_at(tensor: gs.Tensor, outputs: Iterable[gs.Tensor] = ()) -> Linear | None:
    """The Linear, in its normal form, that computes `tensor`.

    Args:
        tensor: what it computes.
        outputs: of the model; a product that is one, in front of the bias, is read by others.
    """
    node, bias = producer(tensor), None
    nodes: tuple[gs.Node, ...] = ()
    if node is not None and node.op == "Add":
        stored = [t for t in node.inputs if is_constant(t)]
        if len(stored) != 1:
            return None
        (inner,) = (t for t in node.inputs if t is not stored[0])
        if len(inner.outputs) != 1 or any(t is inner for t in outputs):
            return None
        bias, nodes, node = stored[0], (node,), producer(inner)
    if node is None or node.op != "MatMul" or is_constant(node.inputs[0]):
        return None
    weight = node.inputs[1]
    if not is_constant(weight) or len(weight.shape) != 2 or numpy_type(weight.dtype).kind != "f":
        return None
    if bias is not None and not _is_vector(bias, weight.shape[1]):
        return None
    return Linear(node.inputs[0], weight, bias, (node, *nodes))


def _is_vector(bias: gs.Constant, width: int) -> bool:
    return bool(bias.shape) and bias.shape[-1] == int(np.prod(bias.shape)) == width
