"""What attention loses where INT8 or FP8 rounds q and k in front of large logits.

A softmax goes by differences of its logits: one that is 60 and off by one part in a hundred is off
by 0.6, and its probability by a factor of 1.8. Where q·kᵀ is divided by √d and trained, logits are
about 1 and nothing is lost by it (34 dB and more). `quantize.cores` says what is done about it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper

from fusewright.plan.plan import Plan
from fusewright.quantize.probabilities import add_distance, new_node
from fusewright.target import FORMATS, Format

_NOT_ZERO = np.finfo(np.float32).tiny
_PRODUCTS = frozenset({"MatMul", "Einsum"})


def measure_logits(proto: onnx.ModelProto, plan: Plan) -> dict[str, str]:
    """Adds to a flat float model, in place, what tells how far off rounded q and k make each core.

    The scale is that of the largest value of the feed, one for q and one for k.

    Returns:
        Group name → the tensor, float32 [1], that tells of each feed ‖core with rounded q and k −
        core‖ / ‖core‖.
    """
    nodes = {node.name: node for node in proto.graph.node}
    found: dict[str, str] = {}
    for group in plan.groups:
        if not (group.is_quantized and group.fixed) or FORMATS[group.decision].block is not None:
            continue
        attend = nodes[group.fixed[0].node]
        between = _from_scores(
            attend, group.fixed[0].slot, [nodes[n] for n in group.members if n in nodes]
        )
        if between is not None:
            name = f"fusewright_logits_{len(found)}"
            found[group.name] = _add_error(proto.graph, between, FORMATS[group.decision], name)
    return found


def _from_scores(
    attend: onnx.NodeProto, slot: int, members: Iterable[onnx.NodeProto]
) -> list[onnx.NodeProto] | None:
    """The nodes of a core from q·kᵀ on to the product with v; None where q·kᵀ is not found."""
    makers = {name: node for node in members for name in node.output}
    found, wanted = [attend], [attend.input[slot]]
    scores = None
    while wanted:
        node = makers.get(wanted.pop())
        if node is None or node in found:
            continue
        found.append(node)
        if node.op_type not in _PRODUCTS:
            wanted += node.input
        elif scores is None:
            scores = node
        else:
            return None
    if scores is None:
        return None
    # In their own order, and what q·kᵀ is part of alone.
    behind, chain = set(scores.output), [scores]
    for node in makers.values():
        if node is not scores and node in found and not behind.isdisjoint(node.input):
            behind |= set(node.output)
            chain.append(node)
    return chain if chain[-1] is attend else None


def _add_error(graph: onnx.GraphProto, chain: list[onnx.NodeProto], form: Format, name: str) -> str:
    numbers = {
        "steps": np.array(form.maximum, np.float32),
        "tiny": np.array(_NOT_ZERO, np.float32),
        "zero": np.zeros((), form.dtype),
    }
    stored = {key: f"{name}_{key}" for key in numbers}
    graph.initializer.extend(
        numpy_helper.from_array(value, stored[key]) for key, value in numbers.items()
    )
    scores = chain[0]
    renamed = {
        operand: _add_rounded(graph, operand, f"{name}_{side}", stored)
        for side, operand in zip("qk", scores.input, strict=True)
    }
    own: dict[str, str] = {}
    for i, node in enumerate(chain):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        source = renamed if i == 0 else own
        copy.input[:] = [source.get(read, read) for read in node.input]
        copy.output[:] = [f"{name}_{made}" if made else "" for made in node.output]
        copy.name = f"{name}_{node.name}"
        own |= dict(zip(node.output, copy.output, strict=True))
        graph.node.append(copy)
    return add_distance(graph, own[chain[-1].output[0]], chain[-1].output[0], name)


def _add_rounded(graph: onnx.GraphProto, tensor: str, name: str, stored: dict[str, str]) -> str:
    scale = [f"{name}_scale", stored["zero"]]
    graph.node.extend(
        [
            new_node("Abs", [tensor], f"{name}_sizes"),
            new_node("ReduceMax", [f"{name}_sizes"], f"{name}_peak", keepdims=0),
            new_node("Div", [f"{name}_peak", stored["steps"]], f"{name}_step"),
            new_node("Max", [f"{name}_step", stored["tiny"]], scale[0]),
            new_node("QuantizeLinear", [tensor, *scale], f"{name}_quantized"),
            new_node("DequantizeLinear", [f"{name}_quantized", *scale], f"{name}_restored"),
        ]
    )
    return f"{name}_restored"
