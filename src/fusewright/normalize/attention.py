"""In front of attention: scales folded into the projection, separate projections packed into one.

(x·W)·c → x·(W·c)        through whatever layout lies between
(q·kᵀ)·c → (q·c)·kᵀ      so that the first can take it on
q·(k·c)ᵀ → (q·c)·kᵀ      where a norm or rotation keeps it from the projection: half of √c each
x·Wq, x·Wk, x·Wv → split(x·[Wq Wk Wv])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.edit import bypass, detach
from fusewright.graph.layout import Region, moved_inputs, region_ahead, region_behind
from fusewright.graph.walk import STANDARD_DOMAINS, is_constant, producer, rank_of, scalar, values
from fusewright.match.attention import CORE, Attention, softmax_axis
from fusewright.match.linear import Linear, linear_at
from fusewright.match.matcher import Match
from fusewright.match.pattern import const, op, var
from fusewright.match.projection import projection_of
from fusewright.match.scene import Scene
from fusewright.normalize.rule import Edit, Rule


def _is_factor(tensor: gs.Constant) -> bool:
    return bool(scalar(tensor))  # of a division by zero nothing can be folded


def _factor(match: Match) -> float:
    factor = scalar(match.tensors["c"])
    assert factor is not None
    return 1.0 / factor if match.root.op == "Div" else factor


def _scale_in_front(match: Match, edit: Edit) -> str | None:
    q, scores = match.tensors["q"], match.named["scores"]
    linear = _linear_behind(q, edit)
    if linear is None:
        return "q does not come from a Linear through layout alone"
    columns = _columns(linear, q, edit.scene)
    if isinstance(columns, str):
        return columns  # in front of q it would stay a node of its own
    scaled = edit.node(match.root.op, [q, match.tensors["c"]], match.root.name)
    scores.inputs[0] = scaled.outputs[0]
    edit.replace(match, [scaled, scores])
    return None


def _scale_into_linear(match: Match, edit: Edit) -> str | None:
    x = match.tensors["x"]
    linear = _linear_behind(x, edit)
    if linear is None:
        return "it does not come from a Linear through layout alone"
    columns = _columns(linear, x, edit.scene)
    if isinstance(columns, str):
        return columns
    if match.tensors["c"].values.ndim > (rank_of(x) or 0):
        return "a scale of higher rank, or of an unknown one"
    if not bypass(edit.model.graph, match.root, x):
        return "it names an output of the model"
    _scale(linear, columns, _factor(match), edit)
    return None


def _scale_on_queries(match: Match, edit: Edit) -> str | None:
    scores = match.named["scores"]
    scaled = _scaled_keys(scores.inputs[1], edit)
    if is_constant(scores.inputs[0]) or scores.inputs[0].dtype is None:
        return "q of unknown type"
    if scaled is None:
        return "k is not scaled by one stored number"
    node, x, factor = scaled
    _scale_operand(scores, factor, node, edit)
    bypass(edit.model.graph, node, x)
    return None


def _scale_operand(scores: gs.Node, factor: float, origin: gs.Node, edit: Edit) -> None:
    """Multiplies q where q·kᵀ reads it; into the number that already does, where there is one."""
    q = scores.inputs[0]
    maker = producer(q)
    free = len(q.outputs) == 1 and not any(t is q for t in edit.model.graph.outputs)
    if maker is not None and maker.op == "Mul" and free:
        for i, tensor in enumerate(maker.inputs):
            if is_constant(tensor) and scalar(tensor) is not None:
                product = (values(tensor).astype(np.float64) * factor).astype(tensor.dtype)
                maker.inputs[i] = edit.stored(tensor, product)
                edit.model.merge_origins(maker, [origin])
                return
    stored = edit.constant(f"{origin.name}_on_q", np.array(factor, q.dtype))
    mul = edit.node("Mul", [q, stored], f"{origin.name}_on_q")
    mul.outputs[0].dtype, mul.outputs[0].shape = q.dtype, q.shape
    scores.inputs[0] = mul.outputs[0]
    edit.model.merge_origins(mul, [origin])
    edit.model.graph.nodes.append(mul)


def _scaled_keys(tensor: gs.Tensor, edit: Edit) -> tuple[gs.Node, gs.Tensor, float] | None:
    """The node that scales keys by one stored number, what it scales, and by how much.

    Between it and `tensor` there is layout that nothing else reads.
    """
    outputs = edit.model.graph.outputs
    while True:
        node = producer(tensor)
        if node is None or len(tensor.outputs) != 1 or any(t is tensor for t in outputs):
            return None
        moved = moved_inputs(node, edit.opset)
        if len(moved) != 1 or len(node.outputs) != 1:
            break
        (tensor,) = moved
    if node.op not in ("Mul", "Div") or node.domain not in STANDARD_DOMAINS:
        return None
    x, c = node.inputs if is_constant(node.inputs[1]) else node.inputs[::-1]
    if not is_constant(c) or is_constant(x) or (node.op == "Div" and c is node.inputs[0]):
        return None
    factor, rank = scalar(c), rank_of(x)
    if not factor or rank is None or values(c).ndim > rank:
        return None
    return node, x, 1.0 / factor if node.op == "Div" else factor


def _linear_behind(tensor: gs.Tensor, edit: Edit) -> Linear | None:
    sources = region_behind([tensor], edit.opset).sources
    return linear_at(sources[0], edit.model.graph.outputs) if len(sources) == 1 else None


def _columns(linear: Linear, x: gs.Tensor, scene: Scene) -> np.ndarray | str:
    """The columns of the Linear that are read as `x` and as nothing else."""
    ahead = _with_outputs(region_ahead(linear.output, scene.opset), scene)
    if len(x.outputs) != 1 or not any(t is x for t in ahead.results):
        return "it is read unscaled too"
    if any(t is x for t in scene.outputs):
        return "it is an output of the model"
    moved = scene.moved(ahead)
    if isinstance(moved, str):
        return moved
    arrays, shape = moved
    used = [_columns_in(array, shape[-1]) for array in arrays]
    mine = next(u for u, t in zip(used, ahead.results, strict=True) if t is x)
    others = [u for u, t in zip(used, ahead.results, strict=True) if t is not x]
    if others and np.intersect1d(mine, np.concatenate(others)).size:
        return "its columns are read unscaled too"
    return mine


def _columns_in(places: np.ndarray, width: int) -> np.ndarray:
    used = np.zeros(width, bool)
    used[places[places >= 0] % width] = True
    return np.flatnonzero(used)


def _with_outputs(region: Region, scene: Scene) -> Region:
    """The region with those of its tensors among the results that are outputs of the model."""
    results = {id(t): t for t in region.results}
    made = {id(t) for t in (*region.sources, *(t for n in region.nodes for t in n.outputs))}
    results |= {id(t): t for t in scene.outputs if id(t) in made}
    return Region(region.nodes, region.sources, tuple(results.values()))


def _scale(linear: Linear, columns: np.ndarray, factor: float, edit: Edit) -> None:
    for node, index, tensor in _stored(linear):
        array = values(tensor).copy()
        wide = array.reshape(-1, array.shape[-1])
        wide[:, columns] = wide[:, columns].astype(np.float64) * factor
        node.inputs[index] = edit.stored(tensor, array)


def _stored(linear: Linear) -> Iterable[tuple[gs.Node, int, gs.Constant]]:
    yield linear.nodes[0], 1, linear.weight
    if linear.bias is not None:
        add = linear.nodes[1]
        yield add, next(i for i, t in enumerate(add.inputs) if t is linear.bias), linear.bias


def _pack(match: Match, edit: Edit) -> str | None:
    if (wrong := softmax_axis(match)) is not None:
        return wrong
    projection = projection_of(Attention(match, edit.scene))
    if isinstance(projection, str):
        return projection
    by_input: dict[int, list[Linear]] = {}
    for linear in projection.linears:
        by_input.setdefault(id(linear.x), []).append(linear)
    several = [linears for linears in by_input.values() if len(linears) > 1]
    if not several:
        return "its projections are packed, or read other tensors"
    for linears in several:
        _replace_by_packed(linears, edit)
    return None


def _replace_by_packed(linears: Sequence[Linear], edit: Edit) -> None:
    first = linears[0]
    weights = [values(linear.weight) for linear in linears]
    dtype, name = weights[0].dtype, first.nodes[0].name
    matrix = edit.constant(f"{first.weight.name}_packed", np.concatenate(weights, axis=1))
    new = [edit.node("MatMul", [first.x, matrix], name)]
    biases = [linear.bias for linear in linears]
    if any(bias is not None for bias in biases):
        parts = [
            np.zeros(w.shape[1], dtype) if bias is None else values(bias).reshape(-1)
            for w, bias in zip(weights, biases, strict=True)
        ]
        bias = edit.constant(f"{first.weight.name}_packed_bias", np.concatenate(parts))
        new.append(edit.node("Add", [new[-1].outputs[0], bias], f"{name}_bias"))
    sizes = edit.constant(f"{name}_sizes", np.array([w.shape[1] for w in weights], np.int64))
    split = edit.node("Split", [new[-1].outputs[0], sizes], f"{name}_split", {"axis": -1})
    shape = first.output.shape
    width = sum(w.shape[1] for w in weights)
    for node in new:
        node.outputs[0].dtype = dtype
        node.outputs[0].shape = None if shape is None else [*shape[:-1], width]
    outputs = [linear.output for linear in linears]
    old = [node for linear in linears for node in linear.nodes]
    for node in (*new, split):
        edit.model.merge_origins(node, old)
    for node in old:
        detach(node)
    split.outputs = outputs
    edit.model.graph.nodes.extend((*new, split))


RULES = (
    Rule(
        "ScoreScale",
        "(q·kᵀ)·c → (q·c)·kᵀ",
        op(
            "Mul|Div",
            op("MatMul", var("q"), var("k"), name="scores"),
            const("c", test=_is_factor, expected="a stored scale"),
        ),
        _scale_in_front,
    ),
    Rule(
        "ProjectionScale",
        "layout(x·W + b)·c → layout(x·cW + cb)",
        op(
            "Mul|Div",
            var("x"),
            const("c", test=_is_factor, expected="a stored scale"),
        ),
        _scale_into_linear,
    ),
    # PyTorch's scaled_dot_product_attention scales q and k by half the exponent each.
    Rule("KeyScale", "q·(k·c)ᵀ → (q·c)·kᵀ", CORE, _scale_on_queries),
    Rule("PackedProjection", "x·Wq, x·Wk, x·Wv → split(x·[Wq Wk Wv])", CORE, _pack),
)
