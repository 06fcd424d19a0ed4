"""What a group can be: the target's limits on attention, convolution and weights, by format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dims import resolve
from fusewright.graph.dtypes import numpy_type
from fusewright.graph.walk import attribute
from fusewright.plan.plan import Group, Plan
from fusewright.target import FORMATS, Format
from fusewright.target.precision import FP32
from fusewright.target.table import SELDOM_PAYS_BELOW, AttentionLimits

_CONVOLUTIONS = ("Conv", "ConvTranspose")


def impossible(group: Group, nodes: dict[str, gs.Node], plan: Plan, decision: str) -> str | None:
    """Why the group cannot have a format on the plan's target, or None where it can.

    Args:
        nodes: the nodes of the plan's graph by name.
        plan: the plan that it is of.
        decision: the name of the format.
    """
    form = FORMATS[decision]
    if not group.inputs_to_quantize:
        return group.spec.never_quantized
    lacking = plan.target.lacks(decision)
    if lacking is not None:
        return lacking
    if form.weights_only and not group.spec.weights:
        return f"{form.title} is for weights, and it has none"
    if form.block is not None and not group.spec.weights and "head_size" not in group.details:
        return f"{form.title} is for what is multiplied with stored weights, and it has none"
    if "head_size" in group.details:
        return _attention(group, plan, form)
    layer = layer_of(group, nodes)
    if layer is None:
        return None
    weight = next(t for t in layer.inputs if t.name == group.parameters["w"])
    if numpy_type(weight.dtype) != np.float32:
        return f"weights of type {numpy_type(weight.dtype)}; {form.title} here starts from float32"
    if layer.op in _CONVOLUTIONS:
        return _convolution(layer, weight.shape, plan, form)
    return _odd_block(group, nodes, form)


def _odd_block(group: Group, nodes: dict[str, gs.Node], form: Format) -> str | None:
    """Why the blocks of a format do not fit a Linear's inputs, or None where they do."""
    if form.block is None:
        return None
    weights = {group.parameters[name] for name in group.spec.weights if name in group.parameters}
    read = (t for member in group.members for t in nodes[member].inputs if t.name in weights)
    for features in {int(tensor.shape[0]) for tensor in read}:
        if features % form.block:
            return f"{features} input features, in {form.title} blocks of {form.block}"
        if features == form.block:
            # TensorRT-RTX builds no MXFP8 there, and multiplies NVFP4 in half.
            return f"{features} input features, one {form.title} block: TensorRT asks for two"
    return None


def layer_of(group: Group, nodes: dict[str, gs.Node]) -> gs.Node | None:
    """The node of the group that reads its weight; None where it has none."""
    weight = group.parameters.get("w")
    return next(
        (
            nodes[member]
            for member in group.members
            if weight is not None and any(t.name == weight for t in nodes[member].inputs)
        ),
        None,
    )


def _attention(group: Group, plan: Plan, form: Format) -> str | None:
    """Why the target does not run this attention fused in a format, or None where it does."""
    target, limits = plan.target, plan.target.attention.get(form.name)
    if limits is None or (target.sm is not None and target.sm < limits.min_sm):
        return f"{target} fuses no {form.title} attention"
    name = target.label
    if plan.rest not in limits.rests and FP32 not in limits.rests:
        rests = " or ".join(rest.upper() for rest in limits.rests)
        return f"a {plan.rest.upper()} rest: {name} fuses {form.title} attention with {rests} only"
    if "IsNaN" in group.ops:
        return f"a NaN guard between Softmax and v: {name} does not fuse attention around it"
    (head_size,) = resolve([group.details["head_size"]], plan.largest)
    if head_size is None or not limits.takes(head_size):
        shown = group.details["head_size"]
        return f"head size {shown}: {name} fuses {form.title} attention {limits.shown}"
    for length in group.details["sequence"]:
        reason = _sequence(length, plan, limits, f"{name} fuses {form.title} attention")
        if reason is not None:
            return reason
    return None


def inside(group: Group, plan: Plan) -> str | None:
    """Why the tensors between an attention's pairs stay FP32 in a half rest; None where not."""
    limits = plan.target.attention.get(group.decision) if "head_size" in group.details else None
    if limits is None or not group.is_quantized or plan.rest in (FP32, *limits.rests):
        return None
    what = f"no {FORMATS[group.decision].title} attention with {plan.rest.upper()} there"
    return f"FP32 between its pairs: {plan.target.label} fuses {what}"


def _sequence(length: Any, plan: Plan, limits: AttentionLimits, does: str) -> str | None:
    (size,) = resolve([length], plan.largest)
    if size is not None and size < limits.shortest:
        return f"a sequence of {size} tokens: {does} from {limits.shortest} on"
    if limits.sequence is None:
        return None
    if size is None:
        return (
            f"a sequence of '{length}' tokens, no maximum declared (--shapes): {does} up to"
            f" {limits.sequence}"
        )
    if size > limits.sequence:
        return f"a sequence of {size} tokens: {does} up to {limits.sequence}"
    return None


def _convolution(layer: gs.Node, shape: Sequence[int], plan: Plan, form: Format) -> str | None:
    limits = plan.target.convolution.get(form.name)
    name = plan.target.label
    if limits is None:
        return f"{form.title} is for the weights of Linears"
    if not plan.target.convolves(form.name):
        return f"{plan.target} runs no {form.title} convolution"
    if layer.op == "ConvTranspose" and not limits.transposed:
        return f"{name} has no {form.title} ConvTranspose"
    kernel = int(np.prod(shape[2:]))
    if limits.kernel is not None and kernel > limits.kernel:
        return (
            f"a kernel of {'x'.join(map(str, shape[2:]))}: {name} runs {form.title} convolutions"
            f" of up to {limits.kernel} elements"
        )
    groups = int(attribute(layer, "group", plan.model.opset) or 1)
    if groups == 1:
        return None
    if limits.group_multiple is None:
        return f"a grouped convolution: {name} has none in {form.title}"
    into, out = _per_group(layer, shape, groups)
    if into % limits.group_multiple == 0 and out % limits.group_multiple == 0:
        return None
    return (
        f"grouped convolution with {into} input and {out} output channels per group: {name} runs"
        f" {form.title} only with multiples of {limits.group_multiple}"
    )


def _per_group(layer: gs.Node, shape: Sequence[int], groups: int) -> tuple[int, int]:
    first, second = int(shape[0]), int(shape[1])
    return (second, first // groups) if layer.op == "Conv" else (first // groups, second)


def hint(group: Group, nodes: dict[str, gs.Node], plan: Plan) -> str:
    """What makes a quantized kernel of this group seldom pay; empty where nothing does."""
    layer = layer_of(group, nodes)
    if layer is None:
        return ""
    weight = next(t for t in layer.inputs if t.name == group.parameters["w"])
    if layer.op not in _CONVOLUTIONS:
        into, out = int(weight.shape[0]), int(weight.shape[1])
        found, what = (into, out), "input and output features"
    else:
        groups = int(attribute(layer, "group", plan.model.opset) or 1)
        into, out = _per_group(layer, weight.shape, groups)
        found, what = (into, out), "input and output channels"
    if min(found) >= SELDOM_PAYS_BELOW:
        return ""
    return f"{into} and {out} {what}: below {SELDOM_PAYS_BELOW} it seldom pays"
