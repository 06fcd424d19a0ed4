"""What attention loses where its probabilities are rounded to steps of one size.

The scale behind a Softmax is fixed: INT8 counts in steps of 1/127 (TENSORRT.md, "Attention"). Where
a query looks at hundreds of keys alike, each of its probabilities is less than a step: they round
to 0, or all to 1, and the sum over v with them. A trained ViT of 50 keys loses nothing (33 to 38
dB, on MNIST). `quantize.cores` says what is done about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fusewright.plan.plan import Group, Plan
from fusewright.quantize.weights import scale_of
from fusewright.target import FORMATS

_NOT_ZERO = 1e-30


@dataclass(frozen=True)
class Loss:
    """What one core loses.

    Attributes:
        error: ‖core with rounded probabilities − core‖ / ‖core‖, on the worst sample.
        largest: the largest probability seen.
        logits: ‖core with rounded q and k − core‖ / ‖core‖, on the worst sample.
    """

    error: float = 0.0
    largest: float = 1.0
    logits: float = 0.0


class Watched(NamedTuple):
    """The tensors, float32 [1], that tell a `Loss` of each feed."""

    error: str
    largest: str


def lossy_cores(plan: Plan) -> list[Group]:
    """The quantized groups with a fixed scale and steps of one size."""
    return [
        group
        for group in plan.groups
        if group.is_quantized and group.fixed and not FORMATS[group.decision].grows
    ]


def measure_probabilities(proto: onnx.ModelProto, plan: Plan) -> dict[str, Watched]:
    """Adds to a flat float model, in place, what tells how far off fixed scales make each core.

    Returns:
        Group name → the tensors that tell it.
    """
    nodes = {node.name: node for node in proto.graph.node}
    found: dict[str, Watched] = {}
    for group in lossy_cores(plan):
        (pair,) = group.fixed
        scale = scale_of(pair.threshold, FORMATS[group.decision])
        zero = np.zeros((), FORMATS[group.decision].dtype)
        attend, name = nodes[pair.node], f"fusewright_core_{len(found)}"
        found[group.name] = Watched(
            _add_error(proto.graph, attend, pair.slot, (scale, zero), name),
            _add_largest(proto.graph, attend.input[pair.slot], name),
        )
    return found


def watch_largest(proto: onnx.ModelProto, cores: Iterable[Group]) -> dict[str, str]:
    """Adds to a flat float model, in place, the largest probability of some cores.

    Returns:
        Group name → the tensor that tells it of each feed, float32 [1].
    """
    nodes = {node.name: node for node in proto.graph.node}
    found: dict[str, str] = {}
    for group in cores:
        (pair,) = group.fixed
        read = nodes[pair.node].input[pair.slot]
        found[group.name] = _add_largest(proto.graph, read, f"fusewright_core_{len(found)}")
    return found


def _add_largest(graph: onnx.GraphProto, probabilities: str, name: str) -> str:
    # ReduceMax has its axes as an attribute or an input, by the opset: over all it needs neither.
    whole, vector, one = f"{name}_largest", f"{name}_largest_vector", f"{name}_one"
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), one))
    graph.node.append(new_node("ReduceMax", [probabilities], whole, keepdims=0))
    graph.node.append(new_node("Reshape", [whole, one], vector))
    return vector


def _add_error(
    graph: onnx.GraphProto,
    attend: onnx.NodeProto,
    slot: int,
    grid: tuple[np.ndarray, np.ndarray],
    name: str,
) -> str:
    steps = [f"{name}_scale", f"{name}_zero"]
    graph.initializer.extend(map(numpy_helper.from_array, grid, steps))
    rounded = onnx.NodeProto()
    rounded.CopyFrom(attend)
    rounded.name = rounded.output[0] = f"{name}_rounded"
    rounded.input[slot] = f"{name}_restored"

    restored = [f"{name}_quantized", *steps]
    graph.node.extend(
        [
            new_node("QuantizeLinear", [attend.input[slot], *steps], f"{name}_quantized"),
            new_node("DequantizeLinear", restored, f"{name}_restored"),
            rounded,
        ]
    )
    return add_distance(graph, rounded.name, attend.output[0], name)


def add_distance(graph: onnx.GraphProto, actual: str, expected: str, name: str) -> str:
    """Adds ‖actual − expected‖ / ‖expected‖, float32 [1], as the tensor `name`."""
    ends, least = {"noise": f"{name}_difference", "signal": expected}, f"{name}_least"
    graph.initializer.append(numpy_helper.from_array(np.array([_NOT_ZERO], np.float32), least))
    graph.node.extend(
        [
            new_node("Sub", [actual, expected], ends["noise"]),
            *(new_node("ReduceL2", [t], f"{name}_{end}", keepdims=0) for end, t in ends.items()),
            new_node("Max", [f"{name}_signal", least], f"{name}_positive"),
            new_node("Div", [f"{name}_noise", f"{name}_positive"], name),
        ]
    )
    return name


def new_node(op: str, inputs: list[str], result: str, **attributes: Any) -> onnx.NodeProto:
    """A node that is named as its output."""
    return helper.make_node(op, inputs, [result], result, **attributes)
