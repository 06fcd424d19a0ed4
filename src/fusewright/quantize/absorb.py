"""Going back from a tensor to what can take a factor per channel: a norm's scale, a Linear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.model import Model
from fusewright.graph.walk import is_constant, producer

_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
# f(x/s) = f(x)/s for s > 0.
_HOMOGENEOUS = frozenset({"Identity", "LeakyRelu", "PRelu", "Relu"})
_CURVED = frozenset({"Elu", "Erf", "Gelu", "HardSwish", "Mish", "Sigmoid", "Swish", "Tanh"})


@dataclass(frozen=True)
class Absorber:
    """What takes 1/s.

    Attributes:
        node: the norm, the Mul by a vector, or the Linear's MatMul.
        slots: (node, input) of the stored tensors to divide: its own, and the biases behind it.
        changed: the tensors from its output to where the search began.
    """

    node: gs.Node
    slots: list[tuple[gs.Node, int]]
    changed: list[gs.Tensor]


def find_absorber(
    tensor: gs.Tensor, channels: int, model: Model, fixed: frozenset[int]
) -> Absorber | str:
    """Goes back over activations and biases to what stores a factor per channel.

    Args:
        tensor: to be divided by s.
        channels: length of its last axis.
        model: the model it is of.
        fixed: ids of tensors that must keep their values: outputs, and what subgraphs read.

    Returns:
        The reason where there is none.
    """
    slots: list[tuple[gs.Node, int]] = []
    changed: list[gs.Tensor] = []
    while True:
        node = producer(tensor)
        reason = _refusal(node, tensor)
        if node is None or reason is not None or node.name in model.frozen:
            return reason or f"behind the custom operator in front of {named(node)}"
        changed.append(tensor)
        own = _stored_slots(node, channels)
        slots += [(node, slot) for slot in own]
        if own and node.op != "Add":
            wrong = _narrow(node, channels) or _unfit(node, own, fixed)
            return wrong or Absorber(node, slots, changed)
        if node.op in _HOMOGENEOUS:
            tensor = node.inputs[0]
        elif node.op == "Add" and len(own) == 1:
            tensor = node.inputs[1 - own[0]]
        else:
            return f"behind {named(node)}, which stores no factor per channel"
        if len(tensor.outputs) != 1 or id(tensor) in fixed:
            return f"'{tensor.name}' in front of {named(node)} is read elsewhere too"


def _refusal(node: gs.Node | None, tensor: gs.Tensor) -> str | None:
    if node is None:
        return f"reads '{tensor.name}', an input of the model"
    if node.op == "MatMul" and not is_constant(node.inputs[1]):
        return f"behind {named(node)} of two computed tensors (attention's v is not smoothed)"
    if node.op in _CURVED:
        return f"behind {named(node)}, which is not positively homogeneous"
    return None


def _stored_slots(node: gs.Node, channels: int) -> list[int]:
    """Inputs of the node that can be divided by s instead of its output."""
    if node.domain is not None:
        return []
    if node.op in _NORMS:
        return [i for i in (1, 2) if i < len(node.inputs) and not node.inputs[i].is_empty()]
    if node.op == "MatMul":
        return [1] if is_constant(node.inputs[1]) and _ends_in(node.inputs[1], channels) else []
    if node.op not in ("Add", "Mul"):
        return []
    # A single number (GELU's ½) is left alone: as a vector, no pattern would know it any more.
    vectors = [i for i, t in enumerate(node.inputs) if is_constant(t) and _ends_in(t, channels)]
    return vectors if len(vectors) == 1 else []


def _ends_in(tensor: gs.Tensor, channels: int) -> bool:
    return bool(tensor.shape) and int(tensor.shape[-1]) == channels


def _narrow(node: gs.Node, channels: int) -> str | None:
    """A norm over another number of channels than the Linears read: they were cut or joined."""
    if node.op not in _NORMS or _ends_in(node.inputs[1], channels):
        return None
    shape = node.outputs[0].shape
    if shape and shape[-1] == channels:
        return None  # one factor for all
    return f"{named(node)} has other channels than the {channels} that are read"


def _unfit(node: gs.Node, slots: Sequence[int], fixed: frozenset[int]) -> str | None:
    """Why the stored tensors cannot be changed, or None where they can."""
    for slot in slots:
        tensor = node.inputs[slot]
        if not is_constant(tensor):
            return f"the scale of {named(node)} is computed"
        if numpy_type(tensor.dtype) != np.float32:
            return f"'{tensor.name}' of {named(node)} is {numpy_type(tensor.dtype)}"
        if node.op == "MatMul" and (len(tensor.outputs) > 1 or id(tensor) in fixed):
            return f"the weight '{tensor.name}' of {named(node)} is read elsewhere too"
    return None


def named(node: gs.Node) -> str:
    """How a reason speaks of a node."""
    return f"{node.op} '{node.name}'"
