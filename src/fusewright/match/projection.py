"""The Linears behind an attention core, found by walking back from it.

How q, k and v are split into heads differs in every exporter. The walk goes back through whatever
only moves elements, and an index tensor then says which rows and columns of the Linear each head
reads: that is what makes a projection, not its operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.layout import Region, data_readers, region_behind
from fusewright.graph.walk import producer
from fusewright.match.attention import Attention
from fusewright.match.linear import Linear, linear_at
from fusewright.match.scene import Scene


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
        moved = scene.moved(region, *regions)
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
