"""Softmax in one form: over the last axis, with nothing around it that undoes itself.

Before opset 13 Softmax flattened its input to a matrix; the converter, Caffe2 and Keras write that
around it. PyTorch wrote Softmax over another axis between two Transposes.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fusewright.graph.walk import attribute, rank_of
from fusewright.match.matcher import Match
from fusewright.match.pattern import const, one_of, op, optional, var
from fusewright.normalize.rule import Edit, Rule
from fusewright.normalize.shapes import same_shape, shape_op


def _axis(node: gs.Node, opset: int, rank: int | None) -> int | None:
    """The axis counted from the end, where it is known."""
    axis = int(attribute(node, "axis", opset))
    if axis < 0:
        return axis
    return None if rank is None else axis - rank


def _without_matrix(match: Match, edit: Edit) -> str | None:
    x, layer = match.tensors["x"], match.named["layer"]
    matrix = layer.inputs[0]
    if _axis(layer, edit.opset, rank_of(matrix)) != -1:
        return "another axis than the last one"
    if rank_of(x) is None or rank_of(matrix) is None or x.shape[-1] is None:
        return "shapes that are not known"
    if matrix.shape[-1] != x.shape[-1]:
        return "a reshape of the last axis"
    if "shape_of" not in match.named and not same_shape(x, match.output):
        return "another shape behind than in front"
    softmax = edit.node("Softmax", [x], layer.name, {"axis": -1})
    edit.replace(match, [softmax])
    return None


def _without_transposes(match: Match, edit: Edit) -> str | None:
    x, layer = match.tensors["x"], match.named["layer"]
    first, last = (list(match.named[n].attrs.get("perm", ())) for n in ("first", "last"))
    if not first or [first[i] for i in last] != list(range(len(first))):
        return "Transposes that do not undo each other"
    axis = _axis(layer, edit.opset, len(first))
    if axis is None or first[axis] != len(first) - 1:
        return "an axis that the Transposes make the last one"
    edit.replace(match, [edit.node("Softmax", [x], layer.name, {"axis": -1})])
    return None


def _last_axis(match: Match, edit: Edit) -> str | None:
    layer, x = match.root, match.tensors["x"]
    rank = rank_of(match.output) if rank_of(x) is None else rank_of(x)
    if _axis(layer, edit.opset, rank) != -1:
        return "another axis than the last one"
    edit.replace(match, [edit.node("Softmax", [x], layer.name, {"axis": -1})])
    return None


_X = var("x")
_AROUND_MATRIX = op("Softmax", op("Reshape|Flatten", _X, optional(const())), name="layer")

RULES = (
    Rule(
        "SoftmaxOnMatrix",
        "Reshape(Softmax(Reshape(x))) → Softmax(x, −1)",
        op(
            "Reshape",
            _AROUND_MATRIX,
            one_of(shape_op(_X, "shape_of"), const(), var("shape")),
        ),
        _without_matrix,
    ),
    Rule(
        "SoftmaxBetweenTransposes",
        "Transpose(Softmax(Transpose(x, p)), p⁻¹) → Softmax(x, −1)",
        op(
            "Transpose",
            op("Softmax", op("Transpose", _X, name="first"), name="layer"),
            name="last",
        ),
        _without_transposes,
    ),
    Rule(
        "SoftmaxLastAxis",
        "Softmax(x, rank − 1) → Softmax(x, −1)",
        op("Softmax", _X, axis=lambda axis: axis >= 0),
        _last_axis,
    ),
)
