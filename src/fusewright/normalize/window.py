"""Around Swin's windows: masks that only the batch enlarges, and partitions that fell away.

    s + tile(mask, batch) → reshape(reshape(s) + mask)
    x·W of a window that covers the map → reshape(x)·W

Where a window covers the map, cutting it may be a reshape to the shape it has: simplifiers drop it.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.layout import region_ahead, region_behind
from fusewright.graph.walk import rank_of, values
from fusewright.match.attention import CORE, Attention, softmax_axis
from fusewright.match.linear import Linear, linear_at
from fusewright.match.matcher import Match, Matcher
from fusewright.match.pattern import const, extra, one_of, op, var
from fusewright.match.window import Windowing, has_position_bias, output_linear, windowing_of
from fusewright.normalize.rule import Edit, Rule


def _untile(match: Match, edit: Edit) -> str | None:
    scores, mask = match.tensors["s"], values(match.tensors["mask"])
    tiled = match.named["merged"].outputs[0]
    spread = match.named["tile"].outputs[0].shape
    if rank_of(scores) != 4 or rank_of(tiled) != 4 or mask.ndim != 5 or spread is None:
        return "not scores of rank 4 and a mask of rank 5"
    if mask.shape[0] != 1 or tuple(spread[1:]) != mask.shape[1:]:
        return "a mask that more than the batch enlarges"
    heads, queries, keys = scores.shape[1:]
    if tuple(tiled.shape[1:]) != mask.shape[2:] or not all(
        isinstance(size, int) for size in (heads, queries, keys)
    ):
        return "scores of another shape than the mask"
    if (bias := match.tensors.get("bias")) is not None:
        mask = mask + values(bias)
    name, windows = match.root.name, mask.shape[1]
    split = edit.constant(f"{name}_windows", np.array([-1, windows, heads, queries, keys]))
    merge = edit.constant(f"{name}_heads", np.array([-1, heads, queries, keys]))
    stored = edit.constant(f"{name}_mask", mask)
    by_window = edit.node("Reshape", [scores, split], f"{name}_split")
    added = edit.node("Add", [by_window.outputs[0], stored], name)
    whole = edit.node("Reshape", [added.outputs[0], merge], f"{name}_merge")
    edit.replace(match, [by_window, added, whole])
    return None


def _restore(match: Match, edit: Edit) -> str | None:
    """Puts the reshape back in front of and behind an attention whose window covers the map."""
    if (wrong := softmax_axis(match)) is not None:
        return wrong
    attention = Attention(match, edit.scene)
    length, output = attention.lengths[0], output_linear(attention)
    linear = _packed_linear(attention)
    if linear is None or output is None:
        return "not one projection in front and a Linear behind"
    x = linear.x
    if region_behind([x], edit.opset).nodes:
        return "layout in front of it"
    if not has_position_bias(attention):
        return "no stored bias per head and pair of positions"
    tokens = [] if x.shape is None else list(x.shape[1:-1])
    if len(tokens) not in (1, 2) or not all(isinstance(n, int) for n in tokens):
        return "a map of unknown size"
    if prod(tokens) != length:
        return "a map of more tokens than the attention reads"
    if length not in _window_lengths(edit):
        return f"no other attention of this model in windows of {length} tokens"
    back = output.output
    sizes = list(back.shape or [None, length, output.weight.shape[1]])[1:]
    restores = not region_ahead(back, edit.opset).nodes
    if restores and not all(isinstance(n, int) for n in sizes):
        return "a result of unknown size"
    _reshape(x, [linear.nodes[0]], [*tokens, linear.weight.shape[0]], linear, edit)
    if restores:
        _reshape(back, list(back.outputs), sizes, output, edit)
    return None


def _packed_linear(attention: Attention) -> Linear | None:
    outputs = attention.scene.outputs
    sources = region_behind(attention.operands, attention.scene.opset).sources
    return linear_at(sources[0], outputs) if len(sources) == 1 else None


def _window_lengths(edit: Edit) -> set[int]:
    """Tokens of the windows that other attentions of the model are seen to run in."""
    graph, scene = edit.model.graph, edit.scene
    matcher = Matcher("window", CORE, edit.opset, graph.outputs)
    found = set()
    for node in graph.nodes:
        match = matcher.at(node) if node.op == "MatMul" and node.outputs else None
        windowing = None if match is None else windowing_of(Attention(match, scene))
        if isinstance(windowing, Windowing):
            found.add(windowing.window.size[0] * windowing.window.size[1])
    return found


def _reshape(
    tensor: gs.Tensor, readers: list[gs.Node], sizes: list[int], linear: Linear, edit: Edit
) -> None:
    """Puts a reshape between a tensor and its readers, in the name of the Linear beside it."""
    target = edit.constant(f"{tensor.name}_window", np.array([-1, *sizes], np.int64))
    node = edit.node("Reshape", [tensor, target], f"{tensor.name}_window")
    node.outputs[0].dtype, node.outputs[0].shape = tensor.dtype, tensor.shape
    edit.model.merge_origins(node, linear.nodes)
    for reader in readers:
        for i, read in enumerate(reader.inputs):
            if read is tensor:
                reader.inputs[i] = node.outputs[0]
    edit.model.graph.nodes.append(node)


_MERGED = op(
    "Reshape", op("Expand", const("mask"), extra("shape"), name="tile"), const(), name="merged"
)

RULES = (
    Rule(
        "TiledMask",
        "s + tile(mask, batch) → reshape(reshape(s) + mask)",
        op("Add", one_of(_MERGED, op("Add", _MERGED, const("bias"))), var("s")),
        _untile,
    ),
    Rule("CoveringWindow", "x·W of a covering window → reshape(x)·W", CORE, _restore, is_last=True),
)
