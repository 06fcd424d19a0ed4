"""A reduction that keeps its axes in one form: keepdims, not a Reshape or Unsqueeze behind.

PyTorch's dynamo exporter writes tensor.var(keepdim=True) so. And a Transpose stands in front, not
behind, as it did before onnxruntime's optimizer pushed it through.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import STANDARD_DOMAINS, axes_of, rank_of
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


def _transpose_first(match: Match, edit: Edit) -> str | None:
    x, layer, perm = match.tensors["x"], match.named["layer"], match.root.attrs.get("perm")
    axes = axes_of(layer, edit.opset, rank_of(x))
    if perm is None or not axes:
        return "an order, or axes, that are not known"
    moved = sorted(perm.index(axis) for axis in axes)
    turned = _transposed(x, perm)
    new = []
    if turned is None:
        new.append(edit.node("Transpose", [x], match.root.name, {"perm": perm}))
        (turned,) = new[0].outputs
        turned.dtype = x.dtype
        turned.shape = None if x.shape is None else [x.shape[i] for i in perm]
    inputs, attrs = [turned], dict(layer.attrs)
    if len(layer.inputs) > 1:
        inputs.append(edit.constant(f"{layer.name}_axes", np.array(moved, np.int64)))
    else:
        attrs["axes"] = moved
    edit.replace(match, [*new, edit.node(layer.op, inputs, layer.name, attrs)])
    return None


def _transposed(x: gs.Tensor, perm: list[int]) -> gs.Tensor | None:
    """What a Transpose of `x` by the same order already writes."""
    for node in x.outputs:
        standard = node.op == "Transpose" and node.domain in STANDARD_DOMAINS
        if standard and node.attrs.get("perm") == perm:
            return node.outputs[0]
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
    Rule(
        "TransposedReduction",
        "Transpose(Reduce(x)) → Reduce(Transpose(x))",
        op(
            "Transpose",
            op("ReduceMean|ReduceL2", var("x"), optional(const()), name="layer", keepdims=1),
        ),
        _transpose_first,
    ),
)
