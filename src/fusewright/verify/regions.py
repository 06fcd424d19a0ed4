"""Proof by regions: for graphs too large to run whole, only what a rewrite changed is run.

A node that both models have, with the same attributes, stored inputs and tensor names, computes
the same by induction over the order of the graph. What is left falls into regions between tensors
that both models name. Each region is run from both models on the same random inputs, with its own
weights. Regions of one structure share their sessions, in which weights are inputs; where the
rewrite left the weights alone, regions of one structure and size are proven once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime as ort

from fusewright.errors import ModelError
from fusewright.graph.collector import without_gc
from fusewright.graph.session import TensorSpec, open_session, run_session
from fusewright.graph.shapes import infer_shapes
from fusewright.verify.equivalence import Comparison, OutputError, compare_outputs

_OPEN_DIMENSION = 2


@dataclass
class _Side:
    """One model, by name."""

    proto: onnx.ModelProto
    producer: dict[str, int] = field(default_factory=dict)
    stored: dict[str, onnx.TensorProto] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    reads: list[tuple[str, ...]] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    same: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> _Side:
        """Indexes a model."""
        side = cls(proto, nodes=list(proto.graph.node))
        for i, node in enumerate(side.nodes):
            side.reads.append(tuple(_reads(node)))
            side.producer.update({name: i for name in node.output if name})
        side.stored = {t.name: t for t in proto.graph.initializer}
        side.given = frozenset(v.name for v in proto.graph.input)
        return side

    def has(self, name: str) -> bool:
        """Whether the name is a computed or fed tensor here."""
        return name in self.producer or name in self.given


@dataclass
class _Region:
    """Nodes of both models that lie between the same tensors."""

    before: list[int]
    after: list[int]
    outputs: list[str]


def compare_by_regions(
    before: onnx.ModelProto, after: onnx.ModelProto, folder: Path | None = None
) -> Comparison:
    """The worst error among the regions in which two models differ.

    Args:
        before: the model as it was.
        after: the rewritten one, with the same names where a tensor is the same.
        folder: where the weights lie that the models refer to.

    Raises:
        ModelError: a region cannot be run: a shape is unknown, or onnxruntime refuses it.
    """
    with without_gc():
        return Comparison((_worst(before, after, folder),))


def _worst(before: onnx.ModelProto, after: onnx.ModelProto, folder: Path | None) -> OutputError:
    old, new = _Side.of(before), _Side.of(after)
    shapes = _shapes(before) | _shapes(after)
    statements: dict[Hashable, _Statement] = {}
    proven: set[Hashable] = set()
    worst = OutputError("nothing changed", 0.0)
    for region in _regions(old, new):
        draft = _Draft(old, new, shapes, folder)
        structure = draft.structure(region)
        statement = None if draft.has_changed_weights else (structure, draft.sizes())
        if statement in proven:
            continue
        if structure not in statements:
            statements[structure] = draft.statement()
        found = statements[structure].check(draft.feed())
        worst = max(
            worst,
            *(replace(e, name=n) for e, n in zip(found.outputs, region.outputs, strict=True)),
            key=lambda error: error.relative,
        )
        if statement is not None:
            proven.add(statement)
    return worst


def _regions(old: _Side, new: _Side) -> Iterator[_Region]:
    """Changed nodes of `new`, joined where they meet in a tensor that `old` does not have."""
    nodes = new.nodes
    changed = [i for i, node in enumerate(nodes) if not _is_same(node, old, new)]
    home = {i: i for i in changed}

    def find(i: int) -> int:
        while home[i] != i:
            home[i] = home[home[i]]
            i = home[i]
        return i

    for i in changed:
        for name in new.reads[i]:
            maker = new.producer.get(name)
            if maker in home and not old.has(name):
                home[find(maker)] = find(i)
    members: dict[int, list[int]] = {}
    for i in changed:
        members.setdefault(find(i), []).append(i)
    readers = _read_outside(new, home, find)
    for root, inside in members.items():
        outputs = [o for i in inside for o in nodes[i].output if o in readers.get(root, ())]
        missing = next((o for o in outputs if not old.has(o)), None)
        if missing is not None:
            raise ModelError(f"tensor '{missing}' is an output of the rewritten model only")
        yield _Region(_slice(old, new, inside, outputs), inside, outputs)


def _read_outside(new: _Side, home: dict[int, int], find: object) -> dict[int, set[str]]:
    """For each region, the tensors that other nodes or the model's outputs read."""
    assert callable(find)
    outside: dict[int, set[str]] = {}
    for i, names in enumerate(new.reads):
        mine = find(i) if i in home else None
        for name in names:
            maker = new.producer.get(name)
            if maker in home and find(maker) != mine:
                outside.setdefault(find(maker), set()).add(name)
    for value in new.proto.graph.output:
        maker = new.producer.get(value.name)
        if maker in home:
            outside.setdefault(find(maker), set()).add(value.name)
    return outside


def _slice(old: _Side, new: _Side, inside: Sequence[int], outputs: Sequence[str]) -> list[int]:
    """Nodes of `old` that compute `outputs` from what the region in `new` reads."""
    edge = {name for i in inside for name in new.reads[i]}
    edge -= {name for i in inside for name in new.nodes[i].output}
    found: set[int] = set()
    waiting = [name for name in outputs if name not in edge]
    while waiting:
        i = old.producer.get(waiting.pop())
        if i is None or i in found:
            continue
        found.add(i)
        waiting += [name for name in old.reads[i] if name not in edge]
    return sorted(found)


def _is_same(node: onnx.NodeProto, old: _Side, new: _Side) -> bool:
    i = old.producer.get(node.output[0]) if node.output else None
    if i is None:
        return False
    other = old.nodes[i]
    if node == other:
        return all(_is_same_stored(name, old, new) for name in node.input)
    return (
        node.op_type == other.op_type
        and node.domain == other.domain
        and node.input == other.input
        and node.output == other.output
        and _attributes(node) == _attributes(other)
        and all(_is_same_stored(name, old, new) for name in node.input)
    )


def _is_same_stored(name: str, old: _Side, new: _Side) -> bool:
    found = new.same.get(name)
    if found is None:
        one, other = old.stored.get(name), new.stored.get(name)
        found = one is other or (one is not None and other is not None and one == other)
        new.same[name] = found
    return found


def _attributes(node: onnx.NodeProto) -> list[bytes]:
    return sorted(a.SerializeToString() for a in node.attribute)


@dataclass(frozen=True)
class _Statement:
    """One structure from both models, as sessions that take weights and activations alike."""

    sides: tuple[tuple[ort.InferenceSession, tuple[str, ...]], ...]
    outputs: tuple[str, ...]

    def check(self, feed: dict[str, np.ndarray]) -> Comparison:
        results = []
        for session, inputs in self.sides:
            mine = {name: feed[name] for name in inputs}
            results.append([run_session(session, mine, self.outputs)])
        return compare_outputs(self.outputs, results[0], results[1])


class _Draft:
    """One region written without its names: tensors and weights are numbered as they appear."""

    def __init__(
        self, old: _Side, new: _Side, shapes: dict[str, TensorSpec], folder: Path | None
    ) -> None:
        self.old, self.new, self.shapes, self.folder = old, new, shapes, folder
        self.has_changed_weights = False
        self._number: dict[tuple[str, str], str] = {}
        self._weights: dict[str, onnx.TensorProto] = {}
        self._nodes: dict[str, list[tuple[onnx.NodeProto, list[str], list[str]]]] = {}
        self._outputs: tuple[str, ...] = ()

    def structure(self, region: _Region) -> Hashable:
        """Equal for regions that are the same computation on other weights and activations."""
        sides = (("old", self.old, region.before), ("new", self.new, region.after))
        keys = tuple(self._side(tag, side, nodes) for tag, side, nodes in sides)
        self._outputs = tuple(self._name("", name) for name in region.outputs)
        return keys, self._outputs

    def _side(self, tag: str, side: _Side, nodes: Sequence[int]) -> Hashable:
        self._nodes[tag], key = [], []
        for i in nodes:
            node = side.nodes[i]
            if any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
                raise ModelError(f"node '{node.name}' has a subgraph; it cannot be proven alone")
            inputs = [self._input(tag, side, name) for name in node.input]
            outputs = [self._name("", name) for name in node.output]
            self._nodes[tag].append((node, inputs, outputs))
            key.append((node.op_type, node.domain, tuple(_attributes(node)), *inputs, "", *outputs))
        stored = [
            (n, t.data_type, len(t.dims), _content(t, self.folder))
            for n, t in self._weights.items()
        ]
        return tuple(key), tuple(stored)

    def _input(self, tag: str, side: _Side, name: str) -> str:
        stored = side.stored.get(name)
        if stored is None:
            return self._name("", name)
        changed = not _is_same_stored(name, self.old, self.new)
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

    def feed(self) -> dict[str, np.ndarray]:
        """The region's own weights, and random activations."""
        feed = {number: _array(tensor, self.folder) for number, tensor in self._weights.items()}
        for i, (name, number) in enumerate(self._activations()):
            feed[number] = _random(self._shape(name) or (), self.shapes[name].dtype.str, i)
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

    def statement(self) -> _Statement:
        """Sessions over both versions of the region."""
        sessions = [self._model(tag, side) for tag, side in (("old", self.old), ("new", self.new))]
        sides = tuple(
            (session, tuple(v.name for v in session.get_inputs())) for session in sessions
        )
        return _Statement(sides, self._outputs)

    def _model(self, tag: str, side: _Side) -> ort.InferenceSession:
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
                spec = self.shapes[name]
                kind = onnx.helper.np_dtype_to_tensor_dtype(spec.dtype)
                model.graph.input.append(_declared(number, kind, len(spec.shape or ())))
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


def _shapes(proto: onnx.ModelProto) -> dict[str, TensorSpec]:
    if not proto.functions and not proto.graph.value_info:
        infer_shapes(proto)
    found = {}
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and kind.elem_type in onnx.helper.get_all_tensor_dtypes():
            dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            found[value.name] = TensorSpec(value.name, np.dtype(dtype), dims)
    return found


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            inner |= {name for n in graph.node for name in n.output}
            yield from (r for n in graph.node for r in _reads(n) if r and r not in inner)
            yield from (v.name for v in graph.output if v.name not in inner)
