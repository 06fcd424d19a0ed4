"""Global average pooling in one form: ReduceMean over space, or a window over the whole map."""

from __future__ import annotations

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.walk import attribute, axes_of, rank_of
from fusewright.match.matcher import Match
from fusewright.match.pattern import const, op, optional, var
from fusewright.normalize.rule import Edit, Rule


def _reduce_mean(match: Match, edit: Edit) -> str | None:
    node, x = match.root, match.tensors["x"]
    rank = rank_of(x)
    # Of rank 3 it may as well be the mean of a LayerNorm over [batch, tokens, channels].
    if rank is None or rank < 4:
        return "an input that is not known to have two spatial axes"
    if sorted(axes_of(node, edit.opset, rank) or ()) != list(range(2, rank)):
        return "other axes than the spatial ones"
    # ReduceMean takes integers and float64 too, for which onnxruntime has no GlobalAveragePool.
    if x.dtype is not None and numpy_type(x.dtype).name not in ("float16", "float32"):
        return f"type {numpy_type(x.dtype)}"
    pool = edit.node("GlobalAveragePool", [x], node.name)
    if attribute(node, "keepdims", edit.opset):
        edit.replace(match, [pool])
    else:
        flatten = edit.node("Flatten", pool.outputs, f"{node.name}_flatten", {"axis": 1})
        edit.replace(match, [pool, flatten])
    return None


def _whole_window(match: Match, edit: Edit) -> str | None:
    node, shape = match.root, match.tensors["x"].shape
    window = list(attribute(node, "kernel_shape", edit.opset))
    if shape is None or list(shape[2:]) != window:
        return "a window that is not known to cover the map"
    same = attribute(node, "auto_pad", edit.opset) not in ("NOTSET", "VALID")
    if same or any(attribute(node, "pads", edit.opset) or ()):
        return "a padded window"
    edit.replace(match, [edit.node("GlobalAveragePool", [match.tensors["x"]], node.name)])
    return None


RULES = (
    # PyTorch's dynamo exporter writes AdaptiveAvgPool2d(1) so, TensorFlow GlobalAveragePooling2D.
    Rule(
        "ReduceMeanPool",
        "ReduceMean(x, spatial axes) → GlobalAveragePool(x)",
        op("ReduceMean", var("x"), optional(const())),
        _reduce_mean,
    ),
    Rule(
        "WholeWindowPool",
        "AveragePool(x, window = map) → GlobalAveragePool(x)",
        op("AveragePool", var("x")),
        _whole_window,
    ),
)
