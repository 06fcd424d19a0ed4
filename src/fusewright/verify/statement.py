"""A region of two models as one statement: the same inputs give the same outputs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime as ort

from fusewright.errors import ModelError
from fusewright.graph.session import TensorSpec, open_session, run_session
from fusewright.graph.shapes import infer_shapes
from fusewright.verify.distance import Comparison, compare_outputs
from fusewright.verify.side import Side, attributes_of, is_same_stored

_OPEN_DIMENSION = 2


@dataclass(frozen=True)
class Region:
    """Nodes of both models, by position, that lie between the same tensors."""

    before: list[int]
    after: list[int]
    outputs: list[str]


class Shapes:
    """Declared and inferred types of the tensors of several models; the last one counts."""

    def __init__(self, *protos: onnx.ModelProto) -> None:
        """Infers what a model without `value_info` does not say, in place."""
        self._values: dict[str, onnx.ValueInfoProto] = {}
        for proto in protos:
            if not proto.functions and not proto.graph.value_info:
                infer_shapes(proto)
            graph = proto.graph
            self._values |= {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}

    def get(self, name: str) -> TensorSpec | None:
        """What is known of a tensor; None where its rank or type is not."""
        value = self._values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        kind = value.type.tensor_type
        if kind.elem_type not in onnx.helper.get_all_tensor_dtypes():
            return None
        dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        return TensorSpec(name, dtype, dims)


@dataclass(frozen=True)
class Statement:
    """One structure from both models, as sessions that take weights and activations alike."""

    sides: tuple[tuple[ort.InferenceSession, tuple[str, ...]], ...]
    outputs: tuple[str, ...]

    def check(self, feed: dict[str, np.ndarray]) -> Comparison:
        """Runs both versions on one feed."""
        results = []
        for session, inputs in self.sides:
            mine = {name: feed[name] for name in inputs}
            results.append([run_session(session, mine, self.outputs)])
        return compare_outputs(self.outputs, results[0], results[1])


class Draft:
    """One region written without its names: tensors and weights are numbered as they appear."""

    def __init__(self, old: Side, new: Side, shapes: Shapes, folder: Path | None) -> None:
        self.old, self.new, self.shapes, self.folder = old, new, shapes, folder
        self.has_changed_weights = False
        self._number: dict[tuple[str, str], str] = {}
        self._weights: dict[str, onnx.TensorProto] = {}
        self._nodes: dict[str, list[tuple[onnx.NodeProto, list[str], list[str]]]] = {}
        self._outputs: tuple[str, ...] = ()

    def structure(self, region: Region) -> Hashable:
        """Equal for regions that are the same computation on other weights and activations."""
        sides = (("old", self.old, region.before), ("new", self.new, region.after))
        keys = tuple(self._side(tag, side, nodes) for tag, side, nodes in sides)
        self._outputs = tuple(self._name("", name) for name in region.outputs)
        return keys, self._outputs

    def _side(self, tag: str, side: Side, nodes: Sequence[int]) -> Hashable:
        self._nodes[tag], key = [], []
        for i in nodes:
            node = side.nodes[i]
            if any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
                raise ModelError(f"node '{node.name}' has a subgraph; it cannot be proven alone")
            inputs = [self._input(tag, side, name) for name in node.input]
            outputs = [self._name("", name) for name in node.output]
            self._nodes[tag].append((node, inputs, outputs))
            key.append(
                (node.op_type, node.domain, tuple(attributes_of(node)), *inputs, "", *outputs)
            )
        stored = [
            (n, t.data_type, len(t.dims), _content(t, self.folder))
            for n, t in self._weights.items()
        ]
        return tuple(key), tuple(stored)

    def _input(self, tag: str, side: Side, name: str) -> str:
        stored = side.stored.get(name)
        if stored is None:
            return self._name("", name)
        changed = not is_same_stored(name, self.old, self.new)
        self.has_changed_weights |= changed
        number = self._name(tag if changed else "stored", name)
        self._weights[number] = stored
        return number

    def _name(self, tag: str, name: str) -> str:
        return self._number.setdefault((tag, name), f"v{len(self._number)}") if name else ""

    def sizes(self) -> Hashable:
        """Shapes of weights and activations: with the structure, all that a proof depends on."""
        weights = tuple(tuple(t.dims) for t in self._weights.values())
        return weights, tuple(self._shape(name) for tag, name in self._number if not tag)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        spec = self.shapes.get(name)
        if spec is None or spec.shape is None:
            return None
        return tuple(d if isinstance(d, int) else _OPEN_DIMENSION for d in spec.shape)

    def _dtype(self, name: str) -> np.dtype:
        spec = self.shapes.get(name)
        if spec is None:
            raise ModelError(f"the type of tensor '{name}' is not known")
        return spec.dtype

    def feed(self) -> dict[str, np.ndarray]:
        """The region's own weights, and random activations."""
        feed = {number: _array(tensor, self.folder) for number, tensor in self._weights.items()}
        for i, (name, number) in enumerate(self._activations()):
            feed[number] = _random(self._shape(name) or (), self._dtype(name).str, i)
        return feed

    def _activations(self) -> list[tuple[str, str]]:
        """The computed tensors that the region reads: (name, number)."""
        nodes = [entry for side in self._nodes.values() for entry in side]
        made = {o for _, _, outputs in nodes for o in outputs}
        read = {i for _, inputs, _ in nodes for i in inputs}
        read |= set(self._outputs)
        wanted = [(n, v) for (tag, n), v in self._number.items() if not tag and v in read - made]
        for name, _ in wanted:
            if self._shape(name) is None:
                raise ModelError(f"the shape of tensor '{name}' is not known")
        return wanted

    def statement(self) -> Statement:
        """Sessions over both versions of the region."""
        sessions = [self._model(tag, side) for tag, side in (("old", self.old), ("new", self.new))]
        sides = tuple(
            (session, tuple(v.name for v in session.get_inputs())) for session in sessions
        )
        return Statement(sides, self._outputs)

    def _model(self, tag: str, side: Side) -> ort.InferenceSession:
        model = onnx.ModelProto(ir_version=side.proto.ir_version)
        model.opset_import.extend(side.proto.opset_import)
        model.graph.name = "region"
        for node, inputs, outputs in self._nodes[tag]:
            model.graph.node.add(
                op_type=node.op_type,
                domain=node.domain,
                input=inputs,
                output=outputs,
                attribute=node.attribute,
            )
        read = {i for _, inputs, _ in self._nodes[tag] for i in inputs} | set(self._outputs)
        for number, tensor in self._weights.items():
            if number in read and _content(tensor, self.folder) is not None:
                array = _array(tensor, self.folder)
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, number))
            elif number in read:
                model.graph.input.append(_declared(number, tensor.data_type, len(tensor.dims)))
        for name, number in self._activations():
            if number in read:
                kind = onnx.helper.np_dtype_to_tensor_dtype(self._dtype(name))
                model.graph.input.append(_declared(number, kind, len(self._shape(name) or ())))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._outputs)
        used = {node.op_type for node, _, _ in self._nodes[tag]}
        model.functions.extend(f for f in side.proto.functions if f.name in used)
        return open_session(model.SerializeToString())


@lru_cache(maxsize=64)
def _random(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    floating = np.dtype(dtype).kind == "f"
    drawn = rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)
    return np.asarray(drawn).astype(dtype)


def _array(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray:
    # Tens of thousands of small weights: onnx's own conversion takes ten times as long.
    if tensor.data_type == onnx.TensorProto.FLOAT and tensor.raw_data:
        return np.frombuffer(tensor.raw_data, "<f4").reshape(tensor.dims)
    array: np.ndarray = onnx.numpy_helper.to_array(tensor, str(folder or ""))
    return array


def _content(tensor: onnx.TensorProto, folder: Path | None) -> bytes | None:
    """Integers (shapes, axes) belong to the structure; float weights are fed."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    if tensor.data_type in floats:
        return None
    return bytes(_array(tensor, folder).tobytes())


def _declared(name: str, kind: int, rank: int) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, kind, [None] * rank)
