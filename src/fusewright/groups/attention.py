"""Multi-head attention: the projection to q, k and v, and the core softmax(q·kᵀ)·v."""

from __future__ import annotations

from typing import Any

from fusewright.graph.walk import is_constant
from fusewright.groups.kind import Finding, FixedPair, GroupKind, Slot
from fusewright.match.attention import CORE, Attention, softmax_axis
from fusewright.match.matcher import Match
from fusewright.match.projection import projection_of
from fusewright.match.scene import Scene

# A probability is at most 1: the scale of the pair behind the Softmax is 1/127.
_PROBABILITY = 1.0


def _projection(match: Match, scene: Scene) -> Finding | str:
    projection = projection_of(Attention(match, scene))
    if isinstance(projection, str):
        return projection
    linears = projection.linears
    parameters = {}
    for suffix, linear in zip(("", "_k", "_v"), linears, strict=False):
        parameters["w" + suffix] = linear.weight
        if linear.bias is not None:
            parameters["b" + suffix] = linear.bias
    operands = {id(t): t for t in Attention(match, scene).operands}
    return Finding(
        nodes=(*(n for lin in linears for n in lin.nodes), *projection.layout.nodes),
        anchor=linears[0].nodes[0],
        inputs=projection.inputs,
        parameters=parameters,
        outputs=tuple(operands.values()),
        to_quantize=frozenset(range(len(projection.inputs))),
        details={"heads": projection.heads},
    )


def core(match: Match, details: dict[str, Any]) -> Finding:
    """The core as a group; masks and biases follow q, k and v.

    The pairs of q and k stand right in front of q·kᵀ, behind a scale or norm inside the group:
    TensorRT fuses nothing where an operator lies between (TENSORRT.md, "Attention").
    """
    bound, scores = match.tensors, match.named["scores"]
    read = (scores.inputs[0], scores.inputs[1], bound["v"])
    direct = [t is bound[name] for name, t in zip("qkv", read, strict=True)]
    extras = {n: t for n, t in bound.items() if n not in ("q", "k", "v")}
    masks = {id(t): t for t in extras.values() if not is_constant(t)}
    stored = {n: t for n, t in extras.items() if is_constant(t) and not n.startswith("shape")}
    return Finding(
        nodes=match.nodes,
        anchor=match.named["softmax"],
        inputs=(bound["q"], bound["k"], bound["v"], *masks.values()),
        parameters={n: t for n, t in stored.items() if t.shape},
        outputs=(match.output,),
        to_quantize=frozenset(i for i, is_input in enumerate(direct) if is_input),
        fixed=(FixedPair(match.named["attend"].name, 0, _PROBABILITY),),
        interior=tuple(Slot(scores.name, i) for i in (0, 1) if not direct[i]),
        details=details,
    )


def size_of(attention: Attention) -> dict[str, Any]:
    """Head size and sequence lengths, in elements; a name where the model leaves one open."""
    queries, keys = attention.lengths
    length = [queries] if queries == keys else [queries, keys]
    return {"head_size": attention.head_size, "sequence": length}


def _core(match: Match, scene: Scene) -> Finding:
    return core(match, size_of(Attention(match, scene)))


MHA_IN_PROJECTION = GroupKind(
    kind="MHAInProjection",
    formula="q, k, v = split into heads(x·W + b)",
    pattern=CORE,
    rejects=softmax_axis,
    grow=_projection,
    weights={"w": 1, "w_k": 1, "w_v": 1},
    moves_pairs=True,
)

SCALED_DOT_PRODUCT_ATTENTION = GroupKind(
    kind="ScaledDotProductAttention",
    formula="softmax(scale·q·kᵀ + masks)·v",
    pattern=CORE,
    rejects=softmax_axis,
    grow=_core,
    needs_quantized_output=True,
)
