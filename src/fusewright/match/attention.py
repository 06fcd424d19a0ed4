"""Attention: the core softmax(q·kᵀ)·v, and by walking back from it the Linears that feed it.

How q, k and v are split into heads differs in every exporter. The walk goes back through whatever
only moves elements, and an index tensor then says which rows and columns of the Linear each head
reads: that is what makes a projection, not its operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dims import Dim, parse, resolve
from fusewright.graph.layout import LARGEST_PROBE, Prober, Region, data_readers, region_behind
from fusewright.graph.walk import is_constant, producer, rank_of
from fusewright.match.matcher import Match
from fusewright.match.pattern import (
    Const,
    Pattern,
    chain,
    const,
    extra,
    maybe,
    number,
    one_of,
    op,
    optional,
    var,
)


def _is_small(tensor: gs.Constant) -> bool:
    return int(np.prod(tensor.shape)) <= 1 or tensor.shape[-1] == 1


def _factor() -> Pattern:
    # A pattern that stands in two places is one value: each place has its own.
    return one_of(
        const(test=lambda t: int(np.prod(t.shape)) == 1, expected="a stored scale"),
        Const("scale", test=_is_small, expected="a stored scale, one or one per head", many=True),
    )


def _scaled(x: Pattern) -> Pattern:
    return chain(x, lambda y: op("Mul|Div", y, _factor()))


def _normalized(x: Pattern) -> Pattern:
    """x/‖x‖ along the last axis, as cosine attention has it."""
    length = op("ReduceL2", x, optional(const()), keepdims=1)
    bounded = one_of(op("Clip|Max", length, const(), optional(const())), length)
    return one_of(
        op("Div", x, maybe("Expand", bounded, extra("shape"))),
        op("LpNormalization", x, p=2, axis=-1),
    )


def _operand(name: str) -> Pattern:
    x = var(name)
    length_one = _normalized(x)
    turned = op("Transpose", length_one, name=f"{name}_turned")
    return _scaled(one_of(turned, length_one, x))


def _score_step(y: Pattern) -> Pattern:
    """What may stand between q·kᵀ and the Softmax: scale, bias, masks, soft cap."""
    return one_of(
        op("Mul|Div", y, _factor()),
        op("Add", y, extra("mask")),
        op("Where", extra("mask"), y, const()),
        op("Where", extra("mask"), const(), y),
        op("Reshape", y, extra("shape")),
        op("Max", y, const()),
        op("Cast|Tanh|Identity", y),
    )


def _probabilities() -> Pattern:
    scores = chain(op("MatMul", _operand("q"), _operand("k"), name="scores"), _score_step)
    softmax = op("Softmax", scores, name="softmax")
    # PyTorch returns zeros, not NaN, for a row that is masked out wholly.
    guarded = op("Where", op("IsNaN", softmax), number(0.0), softmax)
    return chain(
        one_of(guarded, softmax),
        lambda y: one_of(op("Cast|Identity", y), op("Reshape", y, extra("shape"))),
    )


_ATTEND = op("MatMul", _probabilities(), var("v"), name="attend")
# Rows that are masked out wholly may be set to zero behind the product.
CORE = one_of(op("Where", extra("rows"), _ATTEND, number(0.0)), _ATTEND)


def softmax_axis(match: Match) -> str | None:
    """What is wrong with the axis of the core's Softmax, if anything."""
    node = match.named["softmax"]
    axis, rank = node.attrs.get("axis", -1), rank_of(node.outputs[0])
    if axis == -1 or (rank is not None and axis == rank - 1):
        return None
    return f"a Softmax over axis {axis}"


@dataclass(frozen=True)
class Linear:
    """A matrix product with a stored matrix, and its bias where there is one."""

    x: gs.Tensor
    weight: gs.Constant
    bias: gs.Constant | None
    nodes: tuple[gs.Node, ...]

    @property
    def output(self) -> gs.Tensor:
        """What it computes."""
        return self.nodes[-1].outputs[0]


def linear_at(tensor: gs.Tensor, outputs: Iterable[gs.Tensor] = ()) -> Linear | None:
    """The Linear, in its normal form, that computes `tensor`.

    Args:
        tensor: what it computes.
        outputs: of the model; a product that is one, in front of the bias, is read by others.
    """
    node, bias = producer(tensor), None
    nodes: tuple[gs.Node, ...] = ()
    if node is not None and node.op == "Add":
        stored = [t for t in node.inputs if is_constant(t)]
        if len(stored) != 1:
            return None
        (inner,) = (t for t in node.inputs if t is not stored[0])
        if len(inner.outputs) != 1 or any(t is inner for t in outputs):
            return None
        bias, nodes, node = stored[0], (node,), producer(inner)
    if node is None or node.op != "MatMul" or is_constant(node.inputs[0]):
        return None
    weight = node.inputs[1]
    if not is_constant(weight) or len(weight.shape) != 2 or np.dtype(weight.dtype).kind != "f":
        return None
    if bias is not None and not _is_vector(bias, weight.shape[1]):
        return None
    return Linear(node.inputs[0], weight, bias, (node, *nodes))


def _is_vector(bias: gs.Constant, width: int) -> bool:
    return bool(bias.shape) and bias.shape[-1] == int(np.prod(bias.shape)) == width


@dataclass(frozen=True)
class Projection:
    """The Linears behind q, k and v, and the layout from them to the core.

    Attributes:
        linears: one, two or three; in the order q, k, v.
        layout: from their outputs to the core.
        heads: of the queries.
        owners: which of `linears` q, k and v come from.
        columns: of their Linear's output, for q, k and v each [batches and heads, elements of a
            head].
    """

    linears: tuple[Linear, ...]
    layout: Region
    heads: int
    owners: tuple[int, ...] = ()
    columns: tuple[np.ndarray, ...] = ()

    @property
    def inputs(self) -> tuple[gs.Tensor, ...]:
        """What the Linears read, each once."""
        return tuple({id(linear.x): linear.x for linear in self.linears}.values())


@dataclass
class Attention:
    """One core, and what is found around it."""

    match: Match
    scene: Scene

    @property
    def operands(self) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
        """q, k and v where the core reads them."""
        bound = self.match.tensors
        return bound["q"], bound["k"], bound["v"]

    @property
    def has_turned_keys(self) -> bool:
        """Whether k enters with its last two axes swapped, as q·kᵀ wants it."""
        return "k_turned" not in self.match.named

    @property
    def head_size(self) -> int | str | None:
        """Elements per head that q·kᵀ sums over."""
        shape = self.match.named["scores"].inputs[0].shape
        return None if shape is None else shape[-1]

    @property
    def lengths(self) -> tuple[int | str | None, int | str | None]:
        """Sequence length of the queries, and of keys and values."""
        shape = self.match.named["scores"].outputs[0].shape
        return (None, None) if shape is None else (shape[-2], shape[-1])


@dataclass
class Scene:
    """What looks for attention share: the graph's opset and outputs, and what was probed already.

    Attributes:
        sizes: what stands for each symbolic dimension while a region is probed.
        found: what was found around each core.
        probe: runs regions, each structure once.
    """

    opset: int
    outputs: tuple[gs.Tensor, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    found: dict[tuple[str, int], object] = field(default_factory=dict)
    probe: Prober = field(default_factory=Prober)

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The shape of `tensor` while it is probed; None where its rank or width is not known.

        An unknown size gets one of its own: the number of windows where the map is dynamic.
        """
        shape = () if tensor.shape is None else resolve(tensor.shape, self.sizes)
        if not shape or shape[-1] is None:
            return None
        free = max(self.sizes.values(), default=1) + 1
        return tuple(free + i if size is None else size for i, size in enumerate(shape))

    def moved(self, region: Region) -> tuple[list[np.ndarray], tuple[int, ...]] | str:
        """Where the elements of a region's source go, and its shape; or why that is not known."""
        if len(region.sources) != 1:
            return f"layout of {len(region.sources)} tensors"
        (source,) = region.sources
        shape = self.shape(source)
        if shape is None:
            return f"the shape {source.shape} of '{source.name}' is not known"
        if prod(shape) > LARGEST_PROBE:
            return f"'{source.name}' of shape {list(shape)} is too large to probe: a smaller batch"
        moved = self.probe(region, shape, self.opset)
        return "its layout is computed by the model" if moved is None else (moved, shape)


def probe_sizes(graph: gs.Graph) -> dict[str, int]:
    """A small size for each symbolic dimension of the graph, no two alike."""
    names = dict.fromkeys(d for t in graph.tensors().values() for d in t.shape or ())
    sizes = [parse(name) for name in names if isinstance(name, str)]
    symbols = dict.fromkeys(s for size in sizes if isinstance(size, Dim) for s in size.symbols())
    return {symbol: 2 + i for i, symbol in enumerate(symbols)}


def projection_of(attention: Attention) -> Projection | str:
    """The projection behind a core, or why there is none."""
    scene = attention.scene
    key = "projection", id(attention.match.root)
    if key not in scene.found:
        scene.found[key] = _find_projection(attention)
    found = scene.found[key]
    assert isinstance(found, Projection | str)
    return found


def _find_projection(attention: Attention) -> Projection | str:
    scene, core = attention.scene, attention.match.nodes
    layout = region_behind(attention.operands, scene.opset)
    linears: dict[int, Linear] = {}
    owners = []
    for name, operand in zip("qkv", attention.operands, strict=True):
        sources = region_behind([operand], scene.opset).sources
        linear = linear_at(sources[0], scene.outputs) if len(sources) == 1 else None
        if linear is None:
            return f"{name} from {_named(sources)}, not from a Linear through layout alone"
        linears.setdefault(id(linear.output), linear)
        owners.append(list(linears).index(id(linear.output)))
    leak = layout.leaks(core, scene.outputs) or _leak(linears.values(), layout, core, scene)
    if leak is not None:
        return f"'{leak.name}' of the projection used elsewhere"
    columns = _heads(attention, layout)
    if isinstance(columns, str):
        return columns
    heads = len({row.tobytes() for row in columns[0]})
    return Projection(tuple(linears.values()), layout, heads, tuple(owners), columns)


def _named(sources: Sequence[gs.Tensor]) -> str:
    if len(sources) > 1:
        return f"{len(sources)} tensors"
    maker = producer(sources[0])
    return "an input" if maker is None else f"{maker.op} '{maker.name}'"


def _leak(
    linears: Iterable[Linear], layout: Region, core: tuple[gs.Node, ...], scene: Scene
) -> gs.Tensor | None:
    inside = {id(n) for n in (*layout.nodes, *core)}
    fixed = {id(t) for t in scene.outputs}
    for linear in linears:
        tensor = linear.output
        if id(tensor) in fixed or any(id(c) not in inside for c in data_readers(tensor)):
            return tensor
    return None


# Shaped [batches and heads …, tokens] and [batches and heads …, elements of a head].
_Places: TypeAlias = tuple[np.ndarray, np.ndarray]


def _heads(attention: Attention, layout: Region) -> tuple[np.ndarray, ...] | str:
    """The columns of q, k and v, once every head is seen to read them in the same rows."""
    scene = attention.scene
    regions = [layout] * 3
    if len(layout.sources) > 1:
        regions = [region_behind([operand], scene.opset) for operand in attention.operands]
    places = []
    for i, (name, region) in enumerate(zip("qkv", regions, strict=True)):
        moved = scene.moved(region)
        if isinstance(moved, str):
            return f"the heads of {name}: {moved}"
        arrays, shape = moved
        is_turned = name == "k" and attention.has_turned_keys
        place = _places(arrays[i if len(arrays) > 1 else 0], shape[-1], is_turned)
        if place is None:
            return f"heads of {name} that mix rows and columns"
        places.append(place)
    return _same_heads(*places)


def _same_heads(q: _Places, k: _Places, v: _Places) -> tuple[np.ndarray, ...] | str:
    (q_rows, q_columns), (k_rows, k_columns), (v_rows, v_columns) = q, k, v
    if k_rows.shape[-1] != v_rows.shape[-1]:
        return "v of another length than k"
    leads = [rows.shape[:-1] for rows in (q_rows, k_rows, v_rows)]
    try:
        # MatMul spreads a single head of k and v over those of q.
        lead = np.broadcast_shapes(*leads)
    except ValueError:
        return f"heads of q, k and v that do not fit: {', '.join(map(str, leads))}"
    if not np.array_equal(_spread(k_rows, lead), _spread(v_rows, lead)):
        return "v of other positions than k"
    columns = tuple(_spread(array, lead) for array in (q_columns, k_columns, v_columns))
    together = {tuple(part.tobytes() for part in row) for row in zip(*columns, strict=True)}
    heads = {of_q for of_q, _, _ in together}
    if len(together) != len(heads):
        return "a head of q with several of k and v"
    return columns


def _spread(array: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """Broadcast over batches and heads, which become one axis."""
    return np.broadcast_to(array, (*lead, array.shape[-1])).reshape(-1, array.shape[-1])


def _places(moved: np.ndarray, width: int, is_turned: bool) -> _Places | None:
    """Rows of the Linear's output that each batch and head reads, and its columns."""
    if moved.ndim < 3:
        moved = moved.reshape(1, *moved.shape)
    if is_turned:
        moved = np.swapaxes(moved, -1, -2)
    rows, columns = moved[..., 0] // width, moved[..., 0, :] % width
    if np.any(moved < 0) or np.any(moved != rows[..., None] * width + columns[..., None, :]):
        return None
    return rows, columns
