"""The element type of every tensor, and which slots of a node can be half instead of float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import onnx
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import onnx_type
from fusewright.graph.walk import STANDARD_DOMAINS, attribute, is_constant, toposort
from fusewright.precision.kinds import HalfKind

FLOAT = onnx.TensorProto.FLOAT
_TENSOR = "tensor_type"
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Their float outputs have no input to take the type from, or none that a schema ties to it.
_RIGID_OPS = frozenset(
    {
        "Bernoulli",
        "Constant",
        "EyeLike",
        "MelWeightMatrix",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
# Coordinates: the region of interest of a Resize says nothing about its image.
_RIGID_SLOTS = {"Resize": frozenset({1}), QUANTIZE: frozenset({1}), DEQUANTIZE: frozenset({1})}


@dataclass(frozen=True)
class Slots:
    """The float32 tensors at a node.

    Attributes:
        inputs, outputs: positions that follow the node: half when the node is.
        rigid_inputs, rigid_outputs: positions that stay float32 whatever the node is.
    """

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    rigid_inputs: tuple[int, ...] = ()
    rigid_outputs: tuple[int, ...] = ()

    @property
    def follows(self) -> bool:
        """Whether the node can be half at all."""
        return bool(self.inputs or self.outputs)

    def rigid(self) -> Slots:
        """The same where the node has to stay as it is."""
        reads, writes = sorted((*self.inputs, *self.rigid_inputs)), (*self.outputs,)
        return Slots((), (), tuple(reads), tuple(sorted((*writes, *self.rigid_outputs))))


class ElementTypes:
    """Element types of the main graph's tensors, as numbers of `onnx.TensorProto`.

    Rewrites leave many tensors without one: those are told from the operators' schemas.
    """

    def __init__(self, graph: gs.Graph) -> None:
        """Walks the graph once."""
        self._opset = int(graph.opset)
        self._found: dict[int, int | None] = {}
        for node in toposort(graph.nodes):
            for i, tensor in enumerate(node.outputs):
                if tensor.dtype is None:
                    self._found[id(tensor)] = self._inferred(node, i)

    def of(self, tensor: gs.Tensor) -> int | None:
        """The tensor's type; None where nothing tells it."""
        if getattr(tensor, "type", _TENSOR) != _TENSOR:  # a sequence has an element type too
            return None
        if id(tensor) in self._found:
            return self._found[id(tensor)]
        if tensor.is_empty() or tensor.dtype is None:
            return None
        return onnx_type(tensor.dtype)

    def is_float(self, tensor: gs.Tensor) -> bool:
        """Whether it is a float32 tensor."""
        return self.of(tensor) == FLOAT

    def _inferred(self, node: gs.Node, index: int) -> int | None:
        if not _is_known(node, self._opset):
            return None
        if node.op == "Cast":
            return int(attribute(node, "to", self._opset))
        names, kinds = _formal(node.op, self._opset, index, False)
        if len(kinds) == 1:
            return _NUMBERS.get(next(iter(kinds)))
        for i, tensor in enumerate(node.inputs):
            if not tensor.is_empty() and _formal(node.op, self._opset, i, True)[0] == names:
                return self.of(tensor)
        return None


def _is_known(node: gs.Node, opset: int) -> bool:
    """Whether it is an operator of the standard; not one that is newer than the model's opset."""
    standard = node.domain in STANDARD_DOMAINS
    return standard and onnx.defs.has(node.op, max_inclusive_version=opset)


def slots_of(node: gs.Node, types: ElementTypes, opset: int, kind: HalfKind) -> Slots:
    """Which of the node's float32 tensors can be half, by the type constraints of its schema.

    A custom operator, one with subgraphs, one on sequences or with a tensor of unknown type: none.
    """
    reads = [i for i, t in enumerate(node.inputs) if types.is_float(t)]
    writes = [i for i, t in enumerate(node.outputs) if types.is_float(t)]
    if node.domain not in STANDARD_DOMAINS or _is_rigid(node, types, opset, kind):
        return Slots((), (), tuple(reads), tuple(writes))
    kept = _RIGID_SLOTS.get(node.op, frozenset())
    takes = [i for i in reads if i not in kept and _allows(node.op, opset, i, True, kind)]
    gives = [i for i in writes if _allows(node.op, opset, i, False, kind)]
    # The scale of a pair has the type of its float side; it is no tensor of its own.
    scales = (1,) if node.op in (QUANTIZE, DEQUANTIZE) else ()
    rigid = [i for i in reads if i not in takes and i not in scales]
    return Slots(tuple(takes), tuple(gives), tuple(rigid), tuple(set(writes) - set(gives)))


def _is_rigid(node: gs.Node, types: ElementTypes, opset: int, kind: HalfKind) -> bool:
    if node.op in _RIGID_OPS or any(True for _ in node.subgraphs()):
        return True
    if not _is_known(node, opset):
        return True
    if any(types.of(t) is None for t in (*node.inputs, *node.outputs) if not t.is_empty()):
        return True
    if node.op in (QUANTIZE, DEQUANTIZE):
        return not is_constant(node.inputs[1]) or not _allows(node.op, opset, 1, True, kind)
    return any("seq(" in name for name in _used_types(node, opset)) and node.op != "Identity"


def _used_types(node: gs.Node, opset: int) -> Iterator[str]:
    for side, tensors in ((True, node.inputs), (False, node.outputs)):
        for i, tensor in enumerate(tensors):
            if not tensor.is_empty():
                yield from _formal(node.op, opset, i, side)[1]


def _allows(op: str, opset: int, index: int, is_input: bool, kind: HalfKind) -> bool:
    return _NAMES[kind.onnx_type] in _formal(op, opset, index, is_input)[1]


@lru_cache(maxsize=8192)
def _formal(op: str, opset: int, index: int, is_input: bool) -> tuple[str, frozenset[str]]:
    """Name of the type variable of a slot, and the types it allows."""
    schema = onnx.defs.get_schema(op, opset)
    formal = schema.inputs if is_input else schema.outputs
    if not formal:
        return "", frozenset()
    parameter = formal[min(index, len(formal) - 1)]
    return parameter.type_str, frozenset(parameter.types)


_NUMBERS = {
    f"tensor({name.lower()})": number
    for name, number in onnx.TensorProto.DataType.items()
    if name != "UNDEFINED"
}
_NAMES = {number: name for name, number in _NUMBERS.items()}
