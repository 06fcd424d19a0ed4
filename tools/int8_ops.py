"""Which heavy ops of a quantized file run in INT8, and putting some of them back to float.

An operand is quantized behind DequantizeLinear, or behind what only moves such elements: there a
Q/DQ pair serves both sides. A heavy op is in INT8 when both its operands are quantized. Ops go by
their name in the float file, an unnamed one by its first output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

HEAVY = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
MOVING = (
    "Concat",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "Pad",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
# What onnxruntime's optimizer adds to the name of a MatMul that it merges with its bias.
MERGED = "/MatMulAddFusion"


def key(node: onnx.NodeProto) -> str:
    """The name that a node goes by."""
    return node.name or node.output[0]


def heavy_nodes(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Every heavy op, and whether it is in INT8. Nodes must be in topological order."""
    quantized: set[str] = set()
    for node in graph.node:
        data = node.input if node.op_type == "Concat" else node.input[:1]
        moved = node.op_type in MOVING and quantized.issuperset(data)
        if node.op_type == "DequantizeLinear" or moved:
            quantized.update(node.output)
        elif node.op_type in HEAVY and len(node.input) > 1:
            yield node, quantized.issuperset(node.input[:2])


def count_int8(path: Path) -> tuple[int, int]:
    """Heavy nodes with both operands quantized, and heavy nodes, functions inlined."""
    graph = onnx.inliner.inline_local_functions(onnx.load(path)).graph
    found = [int8 for _, int8 in heavy_nodes(graph)]
    return sum(found), len(found)


def by_original_name(
    quantized: onnx.GraphProto, original: onnx.GraphProto
) -> dict[str, tuple[onnx.NodeProto, bool]]:
    """Heavy ops of another tool's file by their name in the float file, and whether in INT8.

    Raises:
        ValueError: the tool's file has a heavy op that the float file does not.
    """
    names = {key(node) for node, _ in heavy_nodes(original)}
    found = {}
    for node, int8 in heavy_nodes(quantized):
        name = key(node) if key(node) in names else key(node).removesuffix(MERGED)
        if name not in names:
            raise ValueError(f"{node.op_type} '{key(node)}' is not in the float model")
        found[name] = (node, int8)
    return found


def owners(report: Mapping[str, Any], original: onnx.GraphProto) -> dict[str, Mapping[str, Any]]:
    """The group that owns each heavy op, by Fusewright's report (`optimize --json`).

    A node that a rewrite split up lies in several groups. One of two computed operands is
    attention's, any other the weights'. An op that no group claimed is left out.
    """
    stored = set(_stored(original))
    found = {}
    for node, _ in heavy_nodes(original):
        computed = stored.isdisjoint(node.input[:2])
        groups = [g for g in report["groups"] if key(node) in g["nodes"]]
        groups = [g for g in groups if g["weights"] or _is_attention(g)]
        groups.sort(key=lambda group: _is_attention(group) != computed)
        if groups:
            found[key(node)] = groups[0]
    return found


def _is_attention(group: Mapping[str, Any]) -> bool:
    return group["kind"] in ("ScaledDotProductAttention", "SwinAttention")


def put_back(
    quantized: onnx.ModelProto, original: onnx.GraphProto, names: Collection[str]
) -> onnx.ModelProto:
    """A copy of another tool's file in which the heavy ops `names` compute in float.

    The pairs on their operands and outputs go: for arithmetic that is not heavy in any case, and
    for all readers where no other INT8 op needs them. That errs in favour of the tool. Weights
    stored as INT8 become the original's.

    Raises:
        ValueError: weights that are not those of the float model, or another op lost its INT8.
    """
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    before = by_original_name(model.graph, original)
    edit = _Edit(model.graph, _stored(original))
    sources = {key(node): node for node in original.node}
    for name in names:
        edit.free(before[name][0], sources[name])
    edit.apply()
    after = {k for k, (_, int8) in by_original_name(model.graph, original).items() if int8}
    if after != {k for k, (_, int8) in before.items() if int8} - set(names):
        raise ValueError(f"other ops than {', '.join(sorted(names))} would become float")
    return model


def _stored(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Stored tensors by name; weights that modules share are behind Identity."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


@dataclass
class _Edit:
    """Float copies of quantized tensors, made where they are asked for.

    Attributes:
        pairs: the pairs met: quantized tensor → the float one in front of it.
        copies: tensors behind moves → their float copy.
        added: moves copied for them, by the name of the original.
    """

    graph: onnx.GraphProto
    weights: Mapping[str, np.ndarray]
    pairs: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    added: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stored = _stored(self.graph)
        self.producers = {out: node for node in self.graph.node for out in node.output}

    def free(self, node: onnx.NodeProto, source: onnx.NodeProto) -> None:
        """Reads one heavy op's operands in float; `source` is the same op in the float file."""
        for slot, tensor in enumerate(node.input):
            weights = source.input[slot] if slot < len(source.input) else ""
            node.input[slot] = self._float(tensor, weights)
        for quantize in self.graph.node:
            if quantize.op_type == "QuantizeLinear" and quantize.input[0] == node.output[0]:
                self.pairs[quantize.output[0]] = node.output[0]

    def apply(self) -> None:
        """Puts the copied moves behind those they copy, and takes the pairs met out."""
        nodes = list(self.graph.node)
        del self.graph.node[:]
        for node in nodes:
            self.graph.node.append(node)
            if key(node) in self.added:
                self.graph.node.append(self.added[key(node)])
        needed = self._needed()
        pairs = [n for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] in self.pairs]
        for pair in pairs:
            keep = (*HEAVY, *MOVING) if pair.output[0] in needed else ()
            for node in self.graph.node:
                if node.op_type not in keep:
                    self._replace(node, pair.output[0], self.pairs[pair.input[0]])

    def _needed(self) -> set[str]:
        """Tensors that INT8 ops read, also through moves."""
        found: set[str] = set()
        for node, int8 in heavy_nodes(self.graph):
            found.update(node.input if int8 else ())
        for node in reversed(self.graph.node):
            if node.op_type in MOVING and found.intersection(node.output):
                found.update(node.input)
        return found

    def _replace(self, node: onnx.NodeProto, old: str, new: str) -> None:
        node.input[:] = [new if name == old else name for name in node.input]

    def _float(self, tensor: str, weights: str) -> str:
        """The tensor in front of all pairs that moves alone part it from."""
        if tensor in self.copies:
            return self.copies[tensor]
        node = self.producers.get(tensor)
        if node is not None and node.op_type == "DequantizeLinear":
            quantize = self.producers.get(node.input[0])
            if quantize is not None and quantize.op_type == "QuantizeLinear":
                self.pairs[quantize.output[0]] = quantize.input[0]
                return self._float(quantize.input[0], weights)
            return self._restored(node, weights)
        if node is None or node.op_type not in MOVING:
            return tensor
        data = len(node.input) if node.op_type == "Concat" else 1
        inputs = [self._float(name, weights) for name in node.input[:data]]
        if inputs == list(node.input[:data]):
            return tensor
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{key(node)}/float"
        copy.input[:data] = inputs
        copy.output[:] = [f"{name}/float" for name in node.output]
        self.added[key(node)] = copy
        self.copies.update(zip(node.output, copy.output, strict=True))
        return self.copies[tensor]

    def _restored(self, dequantize: onnx.NodeProto, name: str) -> str:
        """The float weights that the tool stored as INT8."""
        values, scale = (self.stored[i].astype(np.float64) for i in dequantize.input[:2])
        axis = next((a.i for a in dequantize.attribute if a.name == "axis"), 1)
        if scale.ndim:
            scale = scale.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        found = self.weights.get(name)
        if found is None or found.shape != values.shape:
            raise ValueError(f"'{dequantize.input[0]}' has no float original")
        if (np.abs(found - values * scale) > scale).any():
            raise ValueError(f"'{dequantize.input[0]}' is not '{name}' of the float model, rounded")
        restored = f"{name}/float"
        if restored not in self.stored:
            self.graph.initializer.append(numpy_helper.from_array(found, restored))
            self.stored[restored] = found
        return restored
