"""What attention loses where its probabilities are rounded to steps of one size.

The scale behind a Softmax is fixed: INT8 counts in steps of 1/127 (TENSORRT.md, "Attention"). Where
a query looks at hundreds of keys alike, each of its probabilities is less than a step: they round
to 0, or all to 1, and the sum over v with them. A trained ViT of 50 keys loses nothing (33 to 38
dB, on MNIST).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fusewright.plan.plan import Group, Plan
from fusewright.quantize.weights import scale_of
from fusewright.target import FORMATS

# 10 dB: a tenth of what the core gives is noise. Random weights: a DeiT-tiny of 197 keys, off by
# 0.55 in every core, gains 20 dB from float ones; a ViT-B, 0.07 to 0.19, gains 10; a Swin-T of 49
# keys, 0.02 to 0.08, gains 0.5.
LOST = 10**-0.5
_NOT_ZERO = 1e-30


def lossy_cores(plan: Plan) -> list[Group]:
    """The quantized groups with a fixed scale and steps of one size."""
    return [
        group
        for group in plan.groups
        if group.is_quantized and group.fixed and not FORMATS[group.decision].grows
    ]


def measure_probabilities(proto: onnx.ModelProto, plan: Plan) -> dict[str, str]:
    """Adds to a flat float model, in place, what tells how far off fixed scales make each core.

    Returns:
        Group name → the tensor with ‖core with rounded probabilities − core‖ / ‖core‖, float32 [1].
    """
    nodes = {node.name: node for node in proto.graph.node}
    found: dict[str, str] = {}
    for group in lossy_cores(plan):
        (pair,) = group.fixed
        scale = scale_of(pair.threshold, FORMATS[group.decision])
        zero = np.zeros((), FORMATS[group.decision].dtype)
        found[group.name] = _add_error(
            proto.graph, nodes[pair.node], pair.slot, (scale, zero), f"fusewright_core_{len(found)}"
        )
    return found


def _add_error(
    graph: onnx.GraphProto,
    attend: onnx.NodeProto,
    slot: int,
    grid: tuple[np.ndarray, np.ndarray],
    name: str,
) -> str:
    steps = [f"{name}_scale", f"{name}_zero"]
    least = f"{name}_least"
    stored = (*grid, np.array([_NOT_ZERO], np.float32))
    graph.initializer.extend(map(numpy_helper.from_array, stored, [*steps, least]))
    rounded = onnx.NodeProto()
    rounded.CopyFrom(attend)
    rounded.name = rounded.output[0] = f"{name}_rounded"
    rounded.input[slot] = f"{name}_restored"

    restored = [f"{name}_quantized", *steps]
    ends = {"noise": f"{name}_difference", "signal": attend.output[0]}
    graph.node.extend(
        [
            _node("QuantizeLinear", [attend.input[slot], *steps], f"{name}_quantized"),
            _node("DequantizeLinear", restored, f"{name}_restored"),
            rounded,
            _node("Sub", [rounded.name, attend.output[0]], ends["noise"]),
            *(_node("ReduceL2", [t], f"{name}_{end}", keepdims=0) for end, t in ends.items()),
            _node("Max", [f"{name}_signal", least], f"{name}_positive"),
            _node("Div", [f"{name}_noise", f"{name}_positive"], name),
        ]
    )
    return name


def _node(op: str, inputs: list[str], result: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [result], result, **attributes)


def lost_notes(plan: Plan, errors: Mapping[str, float]) -> list[str]:
    """What the user should know of the cores that lose too much; nothing where none does.

    Args:
        errors: group name → relative error, as `measure_probabilities` says it.
    """
    lost = [group for group in lossy_cores(plan) if errors.get(group.name, 0.0) > LOST]
    if not lost:
        return []
    worst = max(lost, key=lambda group: errors[group.name])
    kinds = sorted({group.kind for group in lost})
    options = " ".join(f"--exclude 'op:{kind}'" for kind in kinds)
    return [
        f"the probabilities of {len(lost)} attentions are lost between the steps of"
        f" {FORMATS[worst.decision].title} (the output of '{worst.name}' is off by"
        f" {errors[worst.name]:.0%}): {options} keeps them float"
    ]
