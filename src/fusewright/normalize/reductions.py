"""A mean that keeps its axes in one form: keepdims, not a Reshape or Unsqueeze behind.

PyTorch's dynamo exporter writes tensor.var(keepdim=True) so.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fusewright.graph.walk import axes_of, rank_of
from fusewright.match.matcher import Match
from fusewright.match.pattern import const, op, optional, var
from fusewright.normalize.rule import Edit, Rule
from fusewright.normalize.shapes import same_shape


def _keep_axes(match: Match, edit: Edit) -> str | None:
    x, layer = match.tensors["x"], match.named["layer"]
    axes = axes_of(layer, edit.opset, rank_of(x))
    if rank_of(x) is None or not axes:
        return "an input of unknown rank"
    kept = gs.Variable("kept", shape=[1 if i in axes else n for i, n in enumerate(x.shape)])
    if not same_shape(kept, match.output):
        return "another shape than that of the kept axes"
    attrs = {**layer.attrs, "keepdims": 1}
    edit.replace(match, [edit.node("ReduceMean", layer.inputs, layer.name, attrs)])
    return None


RULES = (
    Rule(
        "KeptAxes",
        "Reshape(ReduceMean(x, keepdims=0)) → ReduceMean(x, keepdims=1)",
        op(
            "Reshape|Unsqueeze",
            op("ReduceMean", var("x"), optional(const()), name="layer", keepdims=0),
            const(),
        ),
        _keep_axes,
    ),
)
