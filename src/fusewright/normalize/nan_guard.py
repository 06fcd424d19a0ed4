"""PyTorch's guard behind a Softmax: zeros for a row that a mask empties.

    where(isnan(p), 0, p) → p    where no mask can make every score of a row -Inf

A guard between Softmax and Q/DQ keeps TensorRT from fusing attention. Masks that are the smallest
float, as transformers writes them, leave every row finite; a mask of -Inf keeps its guard.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.edit import bypass
from fusewright.graph.walk import is_constant, producer, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import number, op, var
from fusewright.normalize.rule import Edit, Rule

_STEPS = frozenset({"Add", "Mul", "Div", "Reshape"})
_SPREADS = frozenset({"Expand", "Unsqueeze", "Reshape", "Identity", "Slice"})


def _drop_guard(match: Match, edit: Edit) -> str | None:
    reason = _may_be_empty(match.named["softmax"].inputs[0])
    if reason is not None:
        return reason
    done = bypass(edit.model.graph, match.root, match.named["softmax"].outputs[0])
    return None if done else "it names an output of the model"


def _may_be_empty(scores: gs.Tensor) -> str | None:
    """Why every score of a row may be -Inf, so that its Softmax is NaN; None where none can."""
    node = producer(scores)
    while node is not None and node.op in _STEPS:
        behind = [t for t in node.inputs if not is_constant(t)]
        masks = [t for t in node.inputs if is_constant(t)]
        if node.op == "Add" and len(behind) == 2:
            # The mask is the side that is chosen from stored values; the scores are the other.
            mask = next((t for t in behind if _chosen(t)), None)
            if mask is None:
                return f"a computed mask '{behind[1].name}'"
            masks = _chosen(mask)
            behind = [t for t in behind if t is not mask]
        if node.op != "Reshape" and not all(np.isfinite(values(t)).all() for t in masks):
            return "a mask of -Inf"
        node = producer(behind[0])
    found = "an input" if node is None else node.op
    return None if found == "MatMul" else f"scores of {found}"


def _maker(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes the tensor's values, behind what only repeats or moves them."""
    node = producer(tensor)
    while node is not None and node.op in _SPREADS:
        node = producer(node.inputs[0])
    return node


def _chosen(mask: gs.Tensor) -> list[gs.Tensor]:
    """The two stored tensors that every value of a mask is one of; empty where that is not so."""
    node = _maker(mask)
    if node is None or node.op != "Where" or not all(map(is_constant, node.inputs[1:])):
        return []
    return list(node.inputs[1:])


_SOFTMAX = op("Softmax", var("scores"), name="softmax")

RULES = (
    Rule(
        "NanGuard",
        "where(isnan(p), 0, p) → p = softmax of finite scores",
        op("Where", op("IsNaN", _SOFTMAX), number(0.0), _SOFTMAX),
        _drop_guard,
    ),
)
