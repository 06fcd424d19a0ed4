"""GroupNorm in one form: the operator from opset 21 on, before it PyTorch's chain.

    GroupNorm(x) = Reshape(InstanceNormalization(Reshape(x, [0, groups, −1]))) · γ + β   per channel

The operator of opset 18 scales groups, not channels. onnxruntime has a kernel for neither and
writes both out when it cleans a model, by the moments of a LayerNorm chain; here they come back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.walk import attribute, is_constant, rank_of, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import Pattern, const, maybe, one_of, op, var
from fusewright.normalize.affine import behind_by
from fusewright.normalize.layernorm import layer_norm_chain
from fusewright.normalize.moments import epsilon_of, trailing_axes
from fusewright.normalize.rule import Edit, Rule
from fusewright.normalize.shapes import known_sizes, same_shape, same_size, shape_op

GROUPNORM_OPSET = 21


def _target(name: str, x: Pattern) -> Pattern:
    """Where a Reshape goes: a stored shape, that of x, or another computed one."""
    return one_of(const(name), shape_op(x, name), var(name))


def _pattern() -> Pattern:
    x = var("x")
    parted = maybe("Reshape", x, one_of(const(), var("parts")))
    grouped = op("Reshape", parted, one_of(const("rows"), var("rows")), name="grouped")
    normal = one_of(
        op("InstanceNormalization", grouped, const("ones"), const("zeros"), name="instance"),
        layer_norm_chain(grouped),
    )
    # The operator of opset 18, written out, scales the groups.
    affine = op("Add", op("Mul", normal, const("gain")), const("shift"))
    return op("Reshape", one_of(affine, normal), _target("outer", x))


def _scaled_by_rows() -> Pattern:
    """The operator of opset 21, written out: its channels are scaled as [batch, channels, −1]."""
    x = var("x")
    layer = op("GroupNormalization", x, const("scale"), const("bias"), name="layer")
    rows = op("Reshape", layer, const("rows"), name="rows")
    affine = op("Add", op("Mul", rows, const("gain")), const("shift"))
    return op("Reshape", affine, _target("outer", x))


@dataclass(frozen=True)
class _Norm:
    """A GroupNorm: the nodes it takes up, and its parameters per channel."""

    match: Match
    groups: int
    scale: np.ndarray
    bias: np.ndarray

    @property
    def x(self) -> gs.Tensor:
        return self.match.tensors["x"]


def _rewrite(match: Match, edit: Edit) -> str | None:
    x = match.tensors["x"]
    if (rank_of(x) or 0) < 3 or not isinstance(x.shape[1], int):
        return "channels that are not known"
    if x.dtype is not None and numpy_type(x.dtype) != np.float32:
        return f"type {numpy_type(x.dtype)}; the operator rounds otherwise"
    groups = _groups(match, edit.opset)
    if isinstance(groups, str):
        return groups
    if "outer" not in match.named and not same_shape(x, match.output):
        return "another shape behind than in front"
    norm = _parameters(match, groups)
    if norm is None:
        return "a scale or bias that is not per channel"
    norm = _with_affine_behind(norm, edit)
    if edit.opset < GROUPNORM_OPSET:
        return _write_chain(norm, edit)
    name, epsilon = norm.match.root.name, _epsilon(match, edit.opset)
    stored = [
        edit.constant(f"{name}_{what}", array.astype(np.float32))
        for what, array in (("scale", norm.scale), ("bias", norm.bias))
    ]
    attrs = {"num_groups": groups, "epsilon": epsilon}
    edit.replace(norm.match, [edit.node("GroupNormalization", [x, *stored], name, attrs)])
    return None


def _groups(match: Match, opset: int) -> int | str:
    """Number of groups that x is reshaped to, [batch, groups, rest]."""
    x, grouped, rows = match.tensors["x"], match.named["grouped"], match.tensors["rows"]
    tensor = grouped.outputs[0]
    shape = list(tensor.shape or ())
    if is_constant(rows) and grouped.inputs[0] is x and values(rows).size == 3:
        first, count, _ = (int(n) for n in values(rows))
        shape = [x.shape[0] if first == 0 else first, count or x.shape[1], None]
    if len(shape) != 3 or not isinstance(shape[1], int) or x.shape[1] % shape[1]:
        return "a reshape to other than [batch, groups, rest]"
    keeps_batch = same_size(shape[0], x.shape[0]) or (is_constant(rows) and values(rows)[0] == 0)
    if not keeps_batch:
        return "a reshape of the batch"
    if "instance" not in match.named:
        means = [match.named[n] for n in ("mean", "mean_again", "variance") if n in match.named]
        if trailing_axes(means, tensor, opset) != 1:
            return "a mean over other axes than the last one"
    return int(shape[1])


def _parameters(match: Match, groups: int) -> _Norm | None:
    channels = int(match.tensors["x"].shape[1])
    scale, bias = np.ones(channels), np.zeros(channels)
    if "instance" in match.named:
        for_group = [values(match.tensors[n]).astype(np.float64) for n in ("ones", "zeros")]
        scale, bias = (np.repeat(array, channels // groups) for array in for_group)
    if "gain" in match.tensors:
        gain, shift = (_vector(match.tensors[n], groups, 3, channels) for n in ("gain", "shift"))
        if gain is None or shift is None:
            return None
        scale, bias = scale * gain, bias * gain + shift
    if "scale" in match.tensors or "bias" in match.tensors:
        return None  # of the chain of moments: no exporter puts one there
    return _Norm(match, groups, scale, bias)


def _vector(tensor: gs.Tensor, count: int, rank: int, channels: int) -> np.ndarray | None:
    """A constant over [batch, count, …] of `rank` axes, per channel."""
    array = values(tensor).astype(np.float64)
    shape = (1,) * (rank - array.ndim) + array.shape
    if len(shape) != rank or shape[1] not in (1, count) or array.size != shape[1]:
        return None
    return np.repeat(np.broadcast_to(array.reshape(-1), count), channels // count)


def _with_affine_behind(norm: _Norm, edit: Edit) -> _Norm:
    rank, channels = len(norm.x.shape), len(norm.scale)

    def vector(tensor: gs.Tensor) -> np.ndarray | None:
        return _vector(tensor, channels, rank, channels)

    found = behind_by(norm.match, "Mul", vector, edit)
    if found is not None:
        match, gain = found
        norm = replace(norm, match=match, scale=norm.scale * gain, bias=norm.bias * gain)
    found = behind_by(norm.match, "Add", vector, edit)
    if found is not None:
        match, shift = found
        norm = replace(norm, match=match, bias=norm.bias + shift)
    return norm


def _epsilon(match: Match, opset: int) -> float:
    if "instance" in match.named:
        return float(attribute(match.named["instance"], "epsilon", opset))
    return epsilon_of(match)


def _fold_rows(match: Match, edit: Edit) -> str | None:
    layer, x = match.named["layer"], match.tensors["x"]
    scale, bias = (values(match.tensors[n]) for n in ("scale", "bias"))
    channels, rows = len(scale), match.named["rows"].outputs[0].shape
    copied = values(match.tensors["rows"]).tolist() == [0, 0, -1]
    if not copied and (rows is None or len(rows) != 3 or rows[1] != channels):
        return "another shape than [batch, channels, rest]"
    if "outer" not in match.named and not same_shape(x, match.output):
        return "another shape behind than in front"
    gain, shift = (_vector(match.tensors[n], channels, 3, channels) for n in ("gain", "shift"))
    if gain is None or shift is None:
        return "a scale or bias that is not per channel"
    arrays = (scale * gain, bias * gain + shift)
    stored = [
        edit.constant(f"{match.root.name}_{what}", array.astype(scale.dtype))
        for what, array in zip(("scale", "bias"), arrays, strict=True)
    ]
    node = edit.node("GroupNormalization", [x, *stored], match.root.name, layer.attrs)
    edit.replace(match, [node])
    return None


def _write_chain(norm: _Norm, edit: Edit) -> str | None:
    """The spelling of PyTorch's exporters, which the group matches."""
    match, x, name = norm.match, norm.x, norm.match.root.name
    written = "instance" in match.named and "gain" not in match.tensors
    if written and (is_constant(match.tensors.get("outer", x)) or "outer" in match.named):
        return f"GroupNormalization needs opset {GROUPNORM_OPSET}; the chain stays"
    nodes = [_reshape(edit, x, [0, norm.groups, -1], f"{name}_groups")]
    ones = edit.constant(f"{name}_ones", np.ones(norm.groups, np.float32))
    zeros = edit.constant(f"{name}_zeros", np.zeros(norm.groups, np.float32))
    epsilon = {"epsilon": _epsilon(match, edit.opset)}
    inputs = [*nodes[-1].outputs, ones, zeros]
    nodes.append(edit.node("InstanceNormalization", inputs, f"{name}_instance", epsilon))
    rest = known_sizes(gs.Variable("rest", shape=x.shape[1:]))
    if rest is not None:
        nodes.append(_reshape(edit, nodes[-1].outputs[0], [0, *rest], f"{name}_back"))
    else:
        shape = edit.node("Shape", [x], f"{name}_shape")
        back = edit.node("Reshape", [*nodes[-1].outputs, *shape.outputs], f"{name}_back")
        nodes += [shape, back]
    for op_type, array, neutral in (("Mul", norm.scale, 1.0), ("Add", norm.bias, 0.0)):
        if np.all(array == neutral):
            continue
        column = array.astype(np.float32).reshape(-1, *[1] * (len(x.shape) - 2))
        stored = edit.constant(f"{name}_{op_type}", column)
        nodes.append(edit.node(op_type, [*nodes[-1].outputs, stored], name))
    edit.replace(match, nodes)
    return None


def _reshape(edit: Edit, source: gs.Tensor, sizes: list[int], name: str) -> gs.Node:
    shape = edit.constant(f"{name}_sizes", np.array(sizes, np.int64))
    return edit.node("Reshape", [source, shape], name)


RULES = (
    Rule(
        "GroupNormChain",
        "Reshape(InstanceNorm(Reshape(x, [0, groups, −1])))·γ + β → GroupNormalization(x, γ, β)",
        _pattern(),
        _rewrite,
    ),
    Rule(
        "GroupNormAffine",
        "Reshape(Reshape(GroupNorm(x), [0, 0, −1])·γ + β) → GroupNorm(x, γ, β)",
        _scaled_by_rows(),
        _fold_rows,
    ),
)
