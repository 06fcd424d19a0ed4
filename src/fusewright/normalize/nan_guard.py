"""PyTorch's guard behind a Softmax: zeros for a row that a mask empties.

    where(isnan(p), 0, p) → p              where no mask can make every score of a row -Inf
    guarded(softmax(s + m))·v → where(some key is kept, softmax(s + finite m)·v, 0)

A guard between Softmax and Q/DQ keeps TensorRT from fusing attention. Masks that are the smallest
float, as transformers writes them, leave every row finite and need none. For a mask of -Inf the
smallest float gives the same probabilities, 0 behind exp, in every row that keeps a key; the zeros
of the others are put in behind the product.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.graph.edit import bypass
from fusewright.graph.walk import is_constant, producer, scalar, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import number, op, var
from fusewright.normalize.rule import Edit, Rule

# From here on ReduceMax takes its axes as an input.
_AXES_INPUT = 18
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


def _guard_behind(match: Match, edit: Edit) -> str | None:
    """Moves the guard behind the product with v."""
    mask = next((t for t in (match.tensors["a"], match.tensors["b"]) if _chosen(t)), None)
    choice = None if mask is None else producer(mask)
    if mask is None or choice is None or choice.op != "Where":
        return "no mask that is chosen from two stored values"
    fills = [scalar(t) for t in choice.inputs[1:]]
    if sorted(map(str, fills)) != ["-inf", "0.0"]:
        return f"a mask of {fills[0]} and {fills[1]}"
    softmax, added, attend = (match.named[n] for n in ("softmax", "added", "attend"))
    scores = next(t for t in added.inputs if t is not mask)
    if (reason := _may_be_empty(scores)) is not None:
        # A row may be emptied by two masks of which neither does so alone.
        return f"in front of the mask {reason}"
    lowest = edit.constant(f"{mask.name}_lowest", np.array(np.finfo(mask.dtype).min, mask.dtype))
    kept = choice.inputs[0]
    chosen = [lowest if fill else t for fill, t in zip(fills, choice.inputs[1:], strict=True)]
    finite = edit.node("Where", [kept, *chosen], f"{choice.name}_finite")
    finite.outputs[0].shape, finite.outputs[0].dtype = mask.shape, mask.dtype
    new_added = edit.node("Add", [scores, finite.outputs[0]], added.name)
    new_softmax = edit.node("Softmax", [new_added.outputs[0]], softmax.name, softmax.attrs)
    product = edit.node("MatMul", [new_softmax.outputs[0], match.tensors["v"]], attend.name)
    rows = _rows(kept, bool(fills[0]), edit)
    zero = edit.constant(f"{attend.name}_zero", np.zeros((), mask.dtype))
    whole = edit.node(
        "Where", [rows[-1].outputs[0], product.outputs[0], zero], f"{attend.name}_rows"
    )
    for new, old in ((new_added, added), (new_softmax, softmax), (product, attend)):
        new.outputs[0].shape, new.outputs[0].dtype = old.outputs[0].shape, old.outputs[0].dtype
    edit.replace(match, [finite, new_added, new_softmax, product, *rows, whole])
    return None


def _rows(kept: gs.Tensor, is_dropped: bool, edit: Edit) -> list[gs.Node]:
    """Which rows keep a key, [..., queries, 1], from which keys are kept or dropped in each."""
    name, float_type = f"{kept.name}_rows", int(onnx.TensorProto.FLOAT)
    nodes = [edit.node("Not", [kept], f"{name}_kept")] if is_dropped else []
    source = nodes[-1].outputs[0] if nodes else kept
    nodes.append(edit.node("Cast", [source], f"{name}_cast", {"to": float_type}))
    inputs, attrs = [nodes[-1].outputs[0]], {"keepdims": 1, "axes": [-1]}
    if edit.opset >= _AXES_INPUT:
        inputs.append(edit.constant(f"{name}_axis", np.array([-1])))
        del attrs["axes"]
    nodes.append(edit.node("ReduceMax", inputs, f"{name}_max", attrs))
    to_bool = {"to": int(onnx.TensorProto.BOOL)}
    nodes.append(edit.node("Cast", [nodes[-1].outputs[0]], name, to_bool))
    return nodes


_SOFTMAX = op("Softmax", var("scores"), name="softmax")

_MASKED = op("Softmax", op("Add", var("a"), var("b"), name="added"), name="softmax")
_GUARDED = op("Where", op("IsNaN", _MASKED), number(0.0), _MASKED)

RULES = (
    Rule(
        "NanGuard",
        "where(isnan(p), 0, p) → p = softmax of finite scores",
        op("Where", op("IsNaN", _SOFTMAX), number(0.0), _SOFTMAX),
        _drop_guard,
    ),
    Rule(
        "NanGuardBehind",
        "guarded(softmax(s + m))·v → where(some key is kept, softmax(s + finite m)·v, 0)",
        op("MatMul", _GUARDED, var("v"), name="attend"),
        _guard_behind,
    ),
)
