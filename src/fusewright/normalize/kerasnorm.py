"""Keras' LayerNormalization: a batch normalization by the batch's own moments, on a reshaped input.

    Reshape(BN(r, 1, 0, mean(r), var(r))),  r = Reshape(x, [1, −1, size, 1])

Keras normalizes the last axis by FusedBatchNorm in training mode; tf2onnx writes the moments out,
ReduceSumSquare over the number of elements for the variance.
"""

from __future__ import annotations

import numpy as np

from fusewright.graph.opset import LAYERNORM_OPSET
from fusewright.graph.walk import attribute, axes_of, rank_of, scalar, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import Pattern, const, maybe, one_of, op, optional, var
from fusewright.normalize.constants import exactly
from fusewright.normalize.rule import Edit, Rule
from fusewright.normalize.shapes import same_shape, shape_op

_MOMENTS = [0, 2, 3]


def _filled(value: float, name: str) -> Pattern:
    """Ones or zeros for every row, stored or expanded to their number."""
    return one_of(const(name), op("Expand", exactly(value), var(f"{name}_shape")))


def _pattern() -> Pattern:
    x = var("x")
    rows = op("Reshape", x, const("rows"), name="rows")
    average = op("ReduceMean", rows, optional(const()), name="mean", keepdims=1)
    centred = op("Sub", rows, average)
    squares = op("ReduceSumSquare", centred, optional(const()), name="squares", keepdims=0)
    sizes = op("Gather", shape_op(rows), const("counted"))
    count = maybe("Cast", op("ReduceProd", sizes, optional(const()), keepdims=0))
    variance = op("Div", squares, one_of(const("count"), count))
    mean = op("Squeeze", average, optional(const()))
    filled = _filled(1.0, "ones"), _filled(0.0, "zeros")
    normal = op("BatchNormalization", rows, *filled, mean, variance, name="layer")
    return op("Reshape", normal, one_of(const(), shape_op(x, "shape_of"), var("shape")))


def _rewrite(match: Match, edit: Edit) -> str | None:
    node, x = match.named["layer"], match.tensors["x"]
    if edit.opset < LAYERNORM_OPSET:
        return f"LayerNormalization needs opset {LAYERNORM_OPSET}"
    size = _row_size(match, edit.opset)
    if size is None:
        return "moments over other axes than the rows of [1, rows, size, 1]"
    if rank_of(x) is None or x.shape[-1] != size:
        return "a reshape of the last axis"
    if "shape_of" not in match.named and not same_shape(x, match.output):
        return "another shape behind than in front"
    for name, value in (("ones", 1.0), ("zeros", 0.0)):
        tensor = match.tensors.get(name)
        if tensor is not None and np.any(values(tensor) != value):
            return "a scale or a bias of its own"
    scale = edit.constant(f"{match.root.name}_scale", np.ones(size, np.float32))
    attrs = {"axis": -1, "epsilon": attribute(node, "epsilon", edit.opset)}
    edit.replace(match, [edit.node("LayerNormalization", [x, scale], match.root.name, attrs)])
    return None


def _row_size(match: Match, opset: int) -> int | None:
    shape = values(match.tensors["rows"]).tolist()
    if len(shape) != 4 or shape[0] != 1 or shape[1] != -1 or shape[3] != 1:
        return None
    reduced = [axes_of(match.named[name], opset, 4) for name in ("mean", "squares")]
    if any(sorted(axes or ()) != _MOMENTS for axes in reduced):
        return None
    count = match.tensors.get("count")
    if count is not None:
        counted = scalar(count) == shape[2]
    else:
        counted = sorted(values(match.tensors["counted"]).tolist()) == _MOMENTS
    return int(shape[2]) if counted else None


RULES = (
    Rule(
        "KerasLayerNorm",
        "Reshape(BN(r, mean(r), var(r))), r = Reshape(x, [1, −1, size, 1]) → LayerNormalization(x)",
        _pattern(),
        _rewrite,
    ),
)
