"""A model that selects what another one does: the results of its selections come from outside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from fusewright.verify.selections import OF_SHAPES, is_layer
from fusewright.verify.side import reads_of


@dataclass
class Given:
    """A model in which some tensors are given from outside, in place of what it selects itself.

    Attributes:
        model: with an input more for each.
        inputs: by tensor, the name of that input.
        live: tensors that still depend on the model's own inputs, or on layers.
    """

    model: onnx.ModelProto
    inputs: dict[str, str] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)


def with_given(
    model: onnx.ModelProto, values: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> Given:
    """A copy in which the tensors named are inputs; a TopK's values follow its given indices.

    Args:
        model: its weights are copied where it holds them.
        values: what an input of that name may look like: its type and rank count.
        outputs: those of the copy; what nothing of them depends on is left out.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = Given(copy, {name: f"given/{name}" for name in values})
    own = {v.name for v in copy.graph.input}
    nodes = [
        helper.make_node("Identity", [source], [name], source)
        for name, source in given.inputs.items()
    ]
    for node in copy.graph.node:
        nodes += _following(node, given.inputs)
    del copy.graph.node[:], copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    copy.graph.node.extend(_needed(nodes, outputs))
    for name, source in given.inputs.items():
        kind = helper.np_dtype_to_tensor_dtype(values[name].dtype)
        shape = [None] * values[name].ndim
        copy.graph.input.append(helper.make_tensor_value_info(source, kind, shape))
    given.live = own
    for node in copy.graph.node:
        if is_layer(node) or not (node.op_type in OF_SHAPES or own.isdisjoint(reads_of(node))):
            given.live.update(node.output)
    return given


def _following(node: onnx.NodeProto, given: Collection[str]) -> list[onnx.NodeProto]:
    """The node with its own results out of the way; behind a TopK, its values by what is given."""
    chosen = [name for name in node.output if name in given]
    if not chosen:
        return [node]
    if node.op_type != "TopK":
        node.output[:] = [f"{name}/own" if name in given else name for name in node.output]
        return [node]
    values, indices = node.output
    if not values:
        return []
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    return [
        helper.make_node("GatherElements", [node.input[0], indices], [values], node.name, axis=axis)
    ]


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that some of `outputs` depend on, in their order."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            found.append(node)
            wanted.update(reads_of(node))
    return found[::-1]


def behind(model: onnx.ModelProto, sources: Collection[str]) -> set[str]:
    """The tensors that depend on some of `sources`."""
    found = set(sources)
    for node in model.graph.node:
        if not found.isdisjoint(reads_of(node)):
            found.update(name for name in node.output if name)
    return found
