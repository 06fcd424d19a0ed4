"""What is computed from stored tensors alone, where the cleaner left it: weights above all.

Weights arrive through Cast (mixed precision), Transpose (tied embeddings) and Reshape; onnxruntime
also leaves some of the constants of operators that it writes out, such as GroupNormalization.
"""

from __future__ import annotations

import numpy as np
import onnx

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.edit import bypass, detach, redirect
from fusewright.graph.walk import attribute, axes_of, input_at, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import Const, Var, one_of, op, optional
from fusewright.normalize.rule import Edit, Rule

_NUMBERS = "fiub"


def _fold(match: Match, edit: Edit) -> str | None:
    node, result = match.root, match.output
    if any(t is result for t in edit.model.graph.outputs):
        return "it is an output of the model"
    array = _compute(match, edit.opset)
    if array is None:
        return f"a {node.op} that is not computed here"
    stored = edit.constant(f"{match.tensors['x'].name}_{node.op}", array)
    for reader in {id(n): n for n in result.outputs}.values():
        edit.model.merge_origins(reader, [node])
    detach(node)
    redirect(result, stored)
    return None


def _compute(match: Match, opset: int) -> np.ndarray | None:
    node, array = match.root, values(match.tensors["x"])
    if node.op == "Cast":
        kind = onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to", opset))
        # Of float to integer, and of types that NumPy lacks, runtimes have their own ideas.
        known = array.dtype.kind in _NUMBERS and (kind.kind == array.dtype.kind or kind.kind == "f")
        return array.astype(kind) if known and kind.kind in _NUMBERS else None
    if node.op == "Transpose":
        return array.transpose(attribute(node, "perm", opset))
    if node.op == "Reshape":
        shape = [int(size) for size in values(node.inputs[1])]
        if attribute(node, "allowzero", opset) and 0 in shape:
            return None
        copied = [array.shape[i] if size == 0 else size for i, size in enumerate(shape)]
        return array.reshape(copied)
    return _with_axes(match, opset)


def _with_axes(match: Match, opset: int) -> np.ndarray | None:
    node, array = match.root, values(match.tensors["x"])
    if node.op == "Squeeze":
        axes = axes_of(node, opset, array.ndim)
        return None if axes is None else array.squeeze(tuple(axes) or None)
    given = input_at(node, 1)
    count = 0 if given is None else values(given).size
    axes = axes_of(node, opset, array.ndim + count)
    return None if not axes else np.expand_dims(array, tuple(axes))


def _drop_cast(match: Match, edit: Edit) -> str | None:
    node, x = match.root, match.tensors["x"]
    to = onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to", edit.opset))
    if x.dtype is None or numpy_type(x.dtype) != to:
        return "another type"
    done = bypass(edit.model.graph, node, x)
    return None if done else "it names an output of the model"


RULES = (
    Rule(
        "FoldStored",
        "Cast(w), Transpose(w), Reshape(w, s), Unsqueeze(w), Squeeze(w) → a stored tensor",
        op("Cast|Transpose|Reshape|Unsqueeze|Squeeze", Const("x"), optional(Const())),
        _fold,
    ),
    # transformers computes its norms in float32 by name, whatever the model's type.
    Rule("CastToItself", "Cast(x) → x", op("Cast", one_of(Var("x"), Const("x"))), _drop_cast),
)
