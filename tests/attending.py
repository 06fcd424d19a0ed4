"""Small attention nets, in pieces that every spelling is put together from.

q, k and v have 3 heads of 4 elements; no two sizes of a net are alike, so that a wrong axis shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from building import Net, as_model, assert_equal

from fusewright.graph.convert import to_proto
from fusewright.match.matcher import Miss
from fusewright.normalize import normalize
from fusewright.plan.collapse import collapse
from fusewright.plan.plan import Group, Plan
from fusewright.plan.recognise import recognise

BATCH, TOKENS, MEMORY, HEADS, SIZE = 2, 5, 7, 3, 4
WIDTH = HEADS * SIZE
SCALE = SIZE**-0.5
SELF = "MHAInProjection ScaledDotProductAttention Linear"

Build = Callable[[Net], Any]
Step = Callable[[Net, str], str]


@dataclass(frozen=True)
class Operands:
    """q, k with its last two axes swapped, and v, each [batch, heads, tokens, elements]."""

    q: str
    k: str
    v: str


def as_it_is(net: Net, y: str) -> str:
    return y


def tokens(net: Net, batch: int | str = BATCH, length: int | str = TOKENS, name: str = "x") -> str:
    return net.input(name, batch, length, WIDTH)


def linear(net: Net, x: str, out: int = WIDTH, *, bias: bool = True) -> str:
    y = net.op("MatMul", x, net.draw(WIDTH, out))
    return net.op("Add", y, net.draw(out, name="b")) if bias else y


def split_heads(net: Net, y: str, *, turned: bool = False, heads: int = HEADS) -> str:
    """[batch, tokens, width] to [batch, heads, tokens, elements]."""
    y = net.op("Reshape", y, [0, 0, heads, SIZE])
    return net.op("Transpose", y, perm=[0, 2, 3, 1] if turned else [0, 2, 1, 3])


def three_linears(net: Net, x: str, memory: str | None = None, *, bias: bool = True) -> Operands:
    """Three Linears; keys and values come from `memory` where there is one."""
    memory = memory or x
    q, k, v = (linear(net, source, bias=bias) for source in (x, memory, memory))
    return Operands(split_heads(net, q), split_heads(net, k, turned=True), split_heads(net, v))


def packed(net: Net, x: str) -> Operands:
    """One Linear, as timm has it: [batch, tokens, 3, heads, elements] permuted and picked."""
    y = net.op("Reshape", linear(net, x, 3 * WIDTH), [0, 0, 3, HEADS, SIZE])
    y = net.op("Transpose", y, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", y, np.int64(i), axis=0) for i in range(3))
    return Operands(q, net.op("Transpose", k, perm=[0, 1, 3, 2]), v)


def scaled(net: Net, y: str) -> str:
    return net.op("Mul", y, SCALE)


def attend(
    net: Net, o: Operands, between: Step = scaled, behind: Step = as_it_is, axis: int = -1
) -> str:
    """The core: what is `between` q·kᵀ and the Softmax, and `behind` that."""
    scores = between(net, net.op("MatMul", o.q, o.k))
    return net.op("MatMul", behind(net, net.op("Softmax", scores, axis=axis)), o.v)


def merged(net: Net, y: str) -> str:
    """Heads put together, and the Linear behind."""
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, WIDTH])
    return linear(net, y)


def whole(net: Net, o: Operands, **options: Any) -> str:
    return merged(net, attend(net, o, **options))


def self_attention(net: Net, **options: Any) -> str:
    """Three Linears on one input, scaled behind q·kᵀ."""
    return whole(net, three_linears(net, tokens(net)), **options)


def proto_of(build: Build, opset: int = 17) -> onnx.ModelProto:
    net = Net(opset)
    outputs = build(net)
    return net.proto(*((outputs,) if isinstance(outputs, str) else outputs))


def found_in(proto: onnx.ModelProto, *, normal: bool = True) -> tuple[Plan, list[Miss]]:
    model = as_model(proto)
    if normal:
        normalize(model)
    return recognise(model)


def kinds(plan: Plan) -> str:
    return " ".join(group.kind for group in plan.groups)


def group_of(plan: Plan, kind: str) -> Group:
    """The only group of a kind."""
    (group,) = [g for g in plan.groups if g.kind == kind]
    return group


def assert_collapses(proto: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """Collapsed, the model is a valid one and computes the same."""
    collapsed = to_proto(collapse(plan.model.graph, plan))
    onnx.checker.check_model(collapsed, full_check=True)
    assert_equal(proto, collapsed)
    return collapsed


def reasons(misses: Sequence[Miss], kind: str) -> set[str]:
    return {str(miss) for miss in misses if miss.pattern == kind}
