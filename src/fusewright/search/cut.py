"""Cutting a part out of a model with its pairs and types, as a model of its own."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

import onnx

from fusewright.graph.light import without_weights
from fusewright.graph.shapes import infer_shapes

Shape = tuple[int, ...]
_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
_INTEGERS = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL})


@dataclass(frozen=True)
class Part:
    """A part as a model.

    Attributes:
        model: with the tensors that it reads from outside as inputs, of known sizes.
        structure: the same text for parts that differ in names and in values of weights alone.
    """

    model: onnx.ModelProto
    structure: str


def known_shapes(flat: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of every tensor of a model with inputs of known sizes, where it follows from them.

    Args:
        flat: without local functions.
    """
    light = without_weights(flat)
    infer_shapes(light)
    found = {}
    for value in (*light.graph.value_info, *light.graph.input):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            found[value.name] = tuple(d.dim_value for d in dims)
    return found


@dataclass
class Flat:
    """A model to cut parts from.

    Attributes:
        proto: without local functions.
        shapes: of the tensors that are not in its pairs, as `known_shapes` finds them.
    """

    proto: onnx.ModelProto
    shapes: Mapping[str, Shape]
    _named: dict[str, int] = field(default_factory=dict)
    _maker: dict[str, int] = field(default_factory=dict)
    _readers: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        graph = self.proto.graph
        for i, node in enumerate(graph.node):
            self._named[node.name] = i
            self._maker.update(dict.fromkeys(node.output, i))
            for name in dict.fromkeys(node.input):
                self._readers[name].append(i)
        self._stored = {t.name: t for t in graph.initializer}
        self._values = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
        self._results = {v.name for v in graph.output}

    def part(self, names: Set[str]) -> Part | None:
        """The nodes of these names with the pairs and Casts in front, and the Q behind them.

        None where the size of what it reads is not known.
        """
        inside = self._with_pairs({self._named[n] for n in names if n in self._named})
        order = sorted(inside)
        nodes = [self.proto.graph.node[i] for i in order]
        made = dict.fromkeys(name for node in nodes for name in node.output)
        read = dict.fromkeys(n for node in nodes for n in node.input if n and n not in made)
        inputs = [name for name in read if name not in self._stored]
        if any(name not in self.shapes or name not in self._values for name in inputs):
            return None
        outputs = [
            name
            for name in made
            if name in self._results or any(i not in inside for i in self._readers[name])
        ]
        model = onnx.ModelProto(ir_version=self.proto.ir_version)
        model.opset_import.extend(self.proto.opset_import)
        model.graph.name = "part"
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(self._stored[n] for n in read if n in self._stored)
        model.graph.input.extend(self._sized(name) for name in inputs)
        model.graph.output.extend(self._values[name] for name in outputs)
        return Part(model, _structure(model))

    def _with_pairs(self, inside: set[int]) -> set[int]:
        nodes, found = self.proto.graph.node, set(inside)
        waiting = [name for i in inside for name in nodes[i].input]
        while waiting:
            i = self._maker.get(waiting.pop(), -1)
            if i >= 0 and i not in found and nodes[i].op_type in _PAIR:
                found.add(i)
                waiting += nodes[i].input
        for name in (name for i in inside for name in nodes[i].output):
            found |= {i for i in self._readers[name] if nodes[i].op_type == "QuantizeLinear"}
        return found

    def _sized(self, name: str) -> onnx.ValueInfoProto:
        kind = self._values[name].type.tensor_type.elem_type
        return onnx.helper.make_tensor_value_info(name, kind, self.shapes[name])


def _structure(model: onnx.ModelProto) -> str:
    digest = hashlib.sha256()
    for line in _lines(model.graph):
        digest.update(repr(line).encode())
    return digest.hexdigest()


def _lines(graph: onnx.GraphProto) -> Iterator[object]:
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers)) if name else -1

    for node in graph.node:
        attributes = sorted(a.SerializeToString() for a in node.attribute)
        yield node.domain, node.op_type, attributes
        yield [number(name) for name in node.input], [number(name) for name in node.output]
    for value in (*graph.input, *graph.output):
        yield number(value.name), value.type.SerializeToString()
    for tensor in graph.initializer:
        yield number(tensor.name), tensor.data_type, list(tensor.dims)
        if tensor.data_type in _INTEGERS:  # they say how, not how much
            yield tensor.raw_data, list(tensor.int64_data), list(tensor.int32_data)
