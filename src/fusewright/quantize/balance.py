"""One scale for q, k and v: their channels brought to one range, exactly, in the weights.

    q·kᵀ = (q·a)·(k/a)ᵀ        a per channel of a head, so that max|q·a| = max|k/a|
    (p·v)·W = (p·(v/c))·(c·W)   c as in SmoothQuant, so that v has the range of q and k

One Q/DQ pair on the packed projection's output serves q, k and v (TENSORRT.md, "Quantize the packed
projection once"). Cosine attention normalizes q and k and is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.layout import data_readers, region_ahead
from fusewright.graph.walk import peek
from fusewright.graph.workspace import Workspace
from fusewright.match.attention import CORE, Attention
from fusewright.match.linear import Linear
from fusewright.match.matcher import Matcher
from fusewright.match.projection import Projection, projection_of
from fusewright.match.scene import Scene, probe_sizes, static_batch
from fusewright.match.window import output_linear
from fusewright.plan.plan import Group, Plan, node_index
from fusewright.quantize.migrate import Applied, row_maxima

# How much of v's differences between channels goes into the output projection: on a trained ViT
# 0.5, 0.75 and 1 are within 0.12 dB of each other.
_ALPHA = 0.75
_BOUND = 1024.0
_NORMALIZED = frozenset({"ReduceL2", "LpNormalization"})


@dataclass(frozen=True)
class Balance:
    """One attention whose projection can be balanced.

    Attributes:
        group: name of the attention's group.
        projection: the Linears that feed it, and which of their columns are q, k and v.
        output: the Linear behind it with, for each of its rows, the column of v that it reads;
            None where the core is read by something else.
    """

    group: str
    projection: Projection
    output: tuple[Linear, np.ndarray] | None

    @property
    def observe(self) -> tuple[str, ...]:
        """The tensors whose channels decide."""
        return tuple(linear.output.name for linear in self.projection.linears)


def plan_balance(plan: Plan) -> list[Balance]:
    """The quantized attentions of a plan whose q and k come from Linears as they are."""
    nodes, graph = node_index(plan.model.graph), plan.model.graph
    outputs, sizes = tuple(graph.outputs), probe_sizes(graph)
    scene = Scene(plan.model.opset, outputs, sizes, static_batch(graph))
    matcher = Matcher("attention", CORE, plan.model.opset, graph.outputs)
    found = []
    for group in plan.groups:
        if group.is_quantized and group.fixed and _NORMALIZED.isdisjoint(group.ops):
            match = matcher.at(nodes[group.members[-1]])
            balance = None if match is None else _balance(group, Attention(match, scene))
            if balance is not None:
                found.append(balance)
    return found


def _balance(group: Group, attention: Attention) -> Balance | None:
    projection, operands = projection_of(attention), attention.operands
    if isinstance(projection, str) or _is_shared(projection):
        return None
    if any(_is_seen(operand, attention.match.nodes, attention.scene) for operand in operands):
        return None
    stored = [t for linear in projection.linears for t in (linear.weight, linear.bias)]
    own = all(tensor is None or _is_own(tensor, attention.scene) for tensor in stored)
    return Balance(group.name, projection, _output(attention, projection)) if own else None


def _is_seen(tensor: gs.Tensor, core: Sequence[gs.Node], scene: Scene) -> bool:
    """Whether q, k or v is an output of the model, or read by something else than the core."""
    inside = {id(node) for node in core}
    elsewhere = any(id(reader) not in inside for reader in data_readers(tensor))
    return elsewhere or any(tensor is output for output in scene.outputs)


def _is_own(tensor: gs.Tensor, scene: Scene) -> bool:
    """Whether its Linear alone reads it, so that it may change."""
    return len(tensor.outputs) == 1 and all(tensor is not output for output in scene.outputs)


def _is_shared(projection: Projection) -> bool:
    """Whether two of q, k and v are the same columns: a factor for one would change the other."""
    parts = [
        {(owner, int(column)) for column in np.unique(columns)}
        for owner, columns in zip(projection.owners, projection.columns, strict=True)
    ]
    return len(set().union(*parts)) < sum(map(len, parts))


def _output(attention: Attention, projection: Projection) -> tuple[Linear, np.ndarray] | None:
    linear = output_linear(attention)
    if linear is None or not _is_own(linear.weight, attention.scene):
        return None
    ahead = region_ahead(attention.match.output, attention.scene.opset)
    between = (attention.match.output, *(t for node in ahead.nodes for t in node.outputs))
    if any(tensor is output for tensor in between for output in attention.scene.outputs):
        return None
    moved = attention.scene.moved(ahead)
    if isinstance(moved, str):
        return None
    (array, *_), shape = moved
    if attention.scene.batch is not None and prod(shape[:-2]) != len(projection.columns[2]):
        # In front of the core and behind it different batches were probed.
        whole = Attention(attention.match, attention.scene.whole())
        other = projection_of(whole)
        return None if isinstance(other, str) else _output(whole, other)
    # Position in the core's output [batches and heads …, tokens, elements] → column of v.
    lead, within = np.divmod(array.reshape(-1, array.shape[-1]), shape[-1] * shape[-2])
    columns = projection.columns[2][lead, within % shape[-1]]
    return (linear, columns[0]) if np.all(columns == columns[0]) else None


def factors(
    balance: Balance, maxima: Mapping[str, np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """What each Linear's columns, and the output Linear's rows, are multiplied by.

    Args:
        maxima: output of each Linear → max|x| per column, [columns].
    """
    projection = balance.projection
    q, k, v = projection.columns
    seen = [np.asarray(maxima[name], np.float64) for name in balance.observe]
    of_q, of_k, of_v = (seen[owner] for owner in projection.owners)
    columns = [np.ones(len(peaks)) for peaks in seen]
    # Several heads of q may share one of k: what k is divided by is one number for all.
    largest = np.zeros(len(of_k))
    np.maximum.at(largest, k, of_q[q])
    ratio = _clipped(np.sqrt(_quotient(of_k, largest)))
    columns[projection.owners[0]][q] = ratio[k]
    columns[projection.owners[1]][np.unique(k)] /= ratio[np.unique(k)]
    if balance.output is None:
        return columns, None
    linear, rows = balance.output
    weight = np.zeros(len(of_v))
    np.maximum.at(weight, rows, row_maxima([peek(linear.weight)]).astype(np.float64))
    used = np.unique(v)
    scale = _clipped(_quotient(of_v**_ALPHA, weight ** (1.0 - _ALPHA)))
    range_of_v = np.max(of_v[used] / scale[used])
    range_of_q = np.max(of_q[q] * ratio[k])
    scale = scale * range_of_v / range_of_q if range_of_v > 0 and range_of_q > 0 else scale
    columns[projection.owners[2]][used] /= scale[used]
    return columns, scale[rows]


def _quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above/below, and 1 where either is 0: a dead channel."""
    alive = (above > 0) & (below > 0)
    return np.asarray(np.divide(above, below, out=np.ones_like(above), where=alive))


def _clipped(factor: np.ndarray) -> np.ndarray:
    middle = np.exp(np.log(factor).mean())
    return np.asarray(np.clip(factor, middle / _BOUND, middle * _BOUND))


def _nearest_power(factor: np.ndarray) -> np.ndarray:
    return np.asarray(2.0 ** np.rint(np.log2(factor)))


def apply_balance(
    sites: Sequence[Balance],
    maxima: Mapping[str, np.ndarray],
    workspace: Workspace,
    powers_of_two: bool = False,
) -> Applied:
    """Multiplies weights and biases by the factors of each site, in place.

    Args:
        maxima: as in `factors`.
        workspace: where the changed weights lie.
        powers_of_two: the nearest ones, by which nothing is rounded.
    """
    applied = Applied()
    for site in sites:
        columns, rows = factors(site, maxima)
        if powers_of_two:
            columns = [_nearest_power(factor) for factor in columns]
            rows = None if rows is None else _nearest_power(rows)
        for linear, factor in zip(site.projection.linears, columns, strict=True):
            for tensor in (linear.weight, linear.bias):
                if tensor is not None:
                    applied.store(tensor, peek(tensor) * factor, workspace)
        if site.output is not None and rows is not None:
            weight = site.output[0].weight
            applied.store(weight, peek(weight) * rows[:, None], workspace)
    return applied
