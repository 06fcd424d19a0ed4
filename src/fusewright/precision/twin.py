"""The rounding twin: a float32 model that rounds where a half model would.

onnxruntime's CPU computes most of FP16 in float32 and has no BF16 Conv or MatMul, so running the
half model itself proves little. In its twin every half tensor is float32, and behind each operator
that computes one stand two Casts, to half and back. Operators round once, as fused kernels with
float32 accumulators do; one that accumulates in half is worse than its twin.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import TensorProto, helper

from fusewright.errors import ModelError
from fusewright.graph.light import with_weights, without_weights
from fusewright.graph.session import first_line
from fusewright.precision.kinds import HALF_TYPES

# They only move elements, which are rounded already.
_MOVERS = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
        "Identity", "MaxPool", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
        "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
# The type of their result is written in the node: they keep it, and a Cast follows.
_TYPED = frozenset({"Constant", "ConstantOfShape", "RandomNormal", "RandomUniform", "EyeLike"})


@dataclass(frozen=True)
class _Scope:
    """Names that mean a half tensor in the half model → its type; those of outer graphs too."""

    half: Mapping[str, int]


def rounding_twin(proto: onnx.ModelProto, half_interface: Collection[str] = ()) -> onnx.ModelProto:
    """A float32 model that computes what `proto`, with FP16 or BF16 tensors, would.

    Its interface is that of `proto` with float32 for half, but for the inputs and outputs named in
    `half_interface`: those that are half in the model it is to be compared with. Local functions
    are inlined. The weights are shared with `proto`.

    Raises:
        ModelError: the local functions cannot be inlined.
    """
    # Not only the main graph: which tensors of subgraphs are half has to be known as well.
    light = onnx.shape_inference.infer_shapes(_inlined(proto), data_prop=True)
    twin = with_weights(light, proto)
    names = _Names(twin.graph)
    values = (*twin.graph.input, *twin.graph.output)
    interface = {v.name: v.type.tensor_type.elem_type for v in values if v.name in half_interface}
    _round_graph(twin.graph, _Scope({}), names)
    _restore_interface(twin.graph, interface, names)
    del twin.graph.value_info[:]
    return twin


def half_tensors(twin: onnx.ModelProto) -> list[str]:
    """The tensors of a twin's main graph that were half, and computed: what a range check sees."""
    return [
        node.output[0]
        for node in twin.graph.node
        if node.op_type == "Cast" and node.name.startswith(_BACK)
    ]


def is_rounding(node: onnx.NodeProto) -> bool:
    """Whether a node of a twin is one of the two Casts of a rounding."""
    return bool(node.op_type == "Cast" and node.name.startswith((_TO, _BACK)))


_TO, _BACK = "fusewright_twin_to_", "fusewright_twin_back_"


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    light = without_weights(proto)
    if not proto.functions:
        return light
    light.functions.extend(proto.functions)
    try:
        inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(light)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelError(f"its local functions cannot be inlined: {first_line(error)}") from error
    return inlined


class _Names:
    """Hands out names that no graph of the model uses."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._used = set(_all_names(graph))
        self._count = 0

    def fresh(self, name: str, what: str) -> str:
        wanted = f"{name}_{what}"
        while wanted in self._used:
            self._count += 1
            wanted = f"{name}_{what}_{self._count}"
        self._used.add(wanted)
        return wanted


def _all_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (t.name for t in graph.initializer)
    yield from (v.name for v in graph.input)
    for node in graph.node:
        yield from node.output
        for inner in _subgraphs(node):
            yield from _all_names(inner)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _round_graph(graph: onnx.GraphProto, outer: _Scope, names: _Names) -> None:
    """Makes one graph float32, in place, with a rounding behind each half result."""
    scope = _Scope({**outer.half, **_half_names(graph)})
    nodes: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        if tensor.data_type in HALF_TYPES:
            stored = names.fresh(tensor.name, "half")
            nodes.append(_cast(stored, tensor.name, TensorProto.FLOAT, names))
            tensor.name = stored
    fed = {}
    for value in graph.input:
        kind = value.type.tensor_type.elem_type
        if kind in HALF_TYPES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            fed[value.name] = names.fresh(value.name, "fed")
            nodes += _rounding(value.name, fed[value.name], kind, names)
    for node in graph.node:
        for inner in _subgraphs(node):
            _round_graph(inner, scope, names)
        _rename_reads(node, fed)
        nodes += _rounded(node, scope, names)
    for value in graph.output:
        if value.type.tensor_type.elem_type in HALF_TYPES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    del graph.node[:]
    graph.node.extend(nodes)


def _restore_interface(graph: onnx.GraphProto, kinds: Mapping[str, int], names: _Names) -> None:
    """Gives inputs and outputs that were half their type back, with a Cast on the inside."""
    inside = {name: names.fresh(name, "inside") for name in kinds}
    for node in graph.node:
        node.input[:] = [inside.get(name, name) for name in node.input]
        node.output[:] = [inside.get(name, name) for name in node.output]
    given = {v.name for v in graph.input}
    for value in (*graph.input, *graph.output):
        if value.name in kinds:
            value.type.tensor_type.elem_type = kinds[value.name]
    for name, kind in kinds.items():
        if name in given:
            graph.node.insert(0, _cast(name, inside[name], TensorProto.FLOAT, names))
        else:
            graph.node.append(_cast(inside[name], name, kind, names))


def _half_names(graph: onnx.GraphProto) -> dict[str, int]:
    """The half tensors of one graph, by declaration or inference."""
    found = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return {name: kind for name, kind in found.items() if kind in HALF_TYPES}


def _rename_reads(node: onnx.NodeProto, new: Mapping[str, str]) -> None:
    if not new:
        return
    node.input[:] = [new.get(name, name) for name in node.input]
    for graph in _subgraphs(node):
        for inner in graph.node:
            _rename_reads(inner, new)
        for value in graph.output:
            value.name = new.get(value.name, value.name)


def _rounded(node: onnx.NodeProto, scope: _Scope, names: _Names) -> list[onnx.NodeProto]:
    """A node of the twin, with the roundings behind it."""
    made = [(i, scope.half[name]) for i, name in enumerate(node.output) if name in scope.half]
    behind: list[onnx.NodeProto] = []
    typed = node.op_type in _TYPED
    if not made or (node.op_type in _MOVERS and not typed) or any(True for _ in _subgraphs(node)):
        return [node]
    for i, kind in made:
        name = node.output[i]
        raw = names.fresh(name, "raw")
        node.output[i] = raw
        if typed:
            behind.append(_cast(raw, name, TensorProto.FLOAT, names))
        else:
            behind += _rounding(raw, name, kind, names)
    _set_types(node)
    return [node, *behind]


def _set_types(node: onnx.NodeProto) -> None:
    # A Cast to half gives float32, and what is behind it rounds.
    for attribute in node.attribute:
        if attribute.name in ("to", "output_dtype") and attribute.i in HALF_TYPES:
            attribute.i = TensorProto.FLOAT


def _rounding(source: str, target: str, kind: int, names: _Names) -> Sequence[onnx.NodeProto]:
    half = names.fresh(target, "rounded")
    there, back = _cast(source, half, kind, names), _cast(half, target, TensorProto.FLOAT, names)
    there.name, back.name = f"{_TO}{there.name}", f"{_BACK}{back.name}"
    return there, back


def _cast(source: str, target: str, kind: int, names: _Names) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], names.fresh(target, "cast"), to=kind)
