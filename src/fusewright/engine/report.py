"""What an engine became: kernels, data types, bytes, and the group each kernel belongs to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fusewright.engine.kernels import Kernel, TensorType, groups_of
from fusewright.engine.profiles import ShapeRange

# `correlation` is TensorRT's word for a convolution, `deconv` for a transposed one.
_OPERATIONS = {"correlation": "conv", "deconv": "conv", "gemm": "gemm"}
_FUSED_ATTENTION = "_gemm_mha"

GENERATED = "generated"
"""Type of a heavy node that no conv, GEMM or attention kernel names: at batch 1 a float
matrix-vector product becomes part of a generated pointwise kernel."""


@dataclass(frozen=True)
class KernelReport:
    """One kernel and what it stands for.

    Attributes:
        kernel: the row of the plan.
        operation: `conv`, `gemm` or `attention`, None for everything else.
        dtype: data type of `operation`'s operands, `Float*Int8` where they differ.
        groups: names of the groups it came from; in a file without groups, empty.
        nodes: names of the ONNX nodes it came from, as TensorRT spells them.
        inferred: groups and nodes are those of the neighbouring kernels, because TensorRT names
            none (a layout change it made up).
    """

    kernel: Kernel
    operation: str | None
    dtype: str | None
    groups: tuple[str, ...]
    nodes: tuple[str, ...]
    inferred: bool = False


@dataclass(frozen=True)
class EngineReport:
    """A built engine.

    Attributes:
        model, engine: paths; `engine` is None when the engine was not kept.
        backend, version: which TensorRT built it.
        seconds: parsing and building, wall clock.
        engine_bytes: size of the serialized engine.
        profiles: input name → smallest, optimal and largest shape, dynamic inputs only.
        kernels: the plan without stream synchronisation; empty where the backend prints none.
        operators: each Conv, Gemm, MatMul ... of the ONNX file → the data type its kernel computes
            in, or `generated`.
        notes: what was assumed or could not be told.
    """

    model: str
    engine: str | None
    backend: str
    version: str
    seconds: float
    engine_bytes: int
    profiles: Mapping[str, ShapeRange]
    kernels: tuple[KernelReport, ...]
    operators: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def activation_bytes(self) -> int | None:
        """Bytes that all kernels read and write, constants apart; None with dynamic shapes."""
        sizes = [t.nbytes for k in self.kernels for t in (*k.kernel.inputs, *k.kernel.outputs)]
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the constants in the plan, each counted once however many kernels read it."""
        constants = {t.name: t.nbytes or 0 for k in self.kernels for t in k.kernel.constants}
        return sum(constants.values())

    @property
    def operations(self) -> dict[str, dict[str, int]]:
        """Number of kernels by operation and data type: `{"conv": {"Int8": 20}, ...}`."""
        counts: dict[str, Counter[str]] = {}
        for row in self.kernels:
            if row.operation is not None:
                counts.setdefault(row.operation, Counter())[row.dtype or "?"] += 1
        return {name: dict(sorted(counts[name].items())) for name in sorted(counts)}

    def kernels_of(self, group: str) -> tuple[KernelReport, ...]:
        """The kernels that `group` became part of."""
        return tuple(row for row in self.kernels if group in row.groups)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: every field and every derived figure."""
        fields = ("model", "engine", "backend", "version", "seconds", "engine_bytes")
        plain: dict[str, Any] = {name: getattr(self, name) for name in fields}
        plain["profiles"] = {name: [list(s) for s in r] for name, r in self.profiles.items()}
        plain["notes"] = list(self.notes)
        plain["kernel_count"] = len(self.kernels)
        plain["operations"] = self.operations
        plain["operators"] = dict(self.operators)
        plain["activation_bytes"] = self.activation_bytes
        plain["weight_bytes"] = self.weight_bytes
        plain["kernels"] = [_row(row) for row in self.kernels]
        return plain

    def to_json(self) -> str:
        """`to_dict` as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def describe_kernels(
    kernels: Sequence[Kernel], groups: Collection[str]
) -> tuple[KernelReport, ...]:
    """Names the operation, data type and groups of each kernel of a plan.

    `groups` are the names of the model's group calls.
    """
    owned = [(groups_of(kernel, groups), kernel.nodes) for kernel in kernels]
    neighbours = _neighbours(kernels)
    rows = []
    for index, kernel in enumerate(kernels):
        names, nodes = owned[index]
        if not nodes:
            near = [owned[other] for other in neighbours[index]]
            names = tuple(dict.fromkeys(name for group, _ in near for name in group))
            nodes = tuple(dict.fromkeys(node for _, found in near for node in found))
        operation = _operation(kernel)
        dtype = None if operation is None else _operand_dtype(kernel)
        rows.append(KernelReport(kernel, operation, dtype, names, nodes, not kernel.nodes))
    return tuple(rows)


def operator_types(nodes: Sequence[str], kernels: Sequence[KernelReport]) -> dict[str, str]:
    """The data type that each of the heavy `nodes` reached; empty without a plan."""
    reached = {
        node: row.dtype or GENERATED
        for row in kernels
        if row.operation is not None
        for node in row.kernel.nodes
    }
    return {node: reached.get(node, GENERATED) for node in nodes} if kernels else {}


def _operation(kernel: Kernel) -> str | None:
    if _FUSED_ATTENTION in kernel.name:
        return "attention"
    if kernel.type == "runtime_fusion":
        # The name lists the fused operations: `__myl_CorrSilu`, `__myl_FcAddDivErf`.
        if "Corr" in kernel.name:
            return "conv"
        return "gemm" if "Fc" in kernel.name else None
    return _OPERATIONS.get(kernel.type)


def _operand_dtype(kernel: Kernel) -> str:
    """Data type of the activation and of the weight (or second activation) together."""
    operands = kernel.inputs[:1] + _second_operand(kernel)
    return "*".join(dict.fromkeys(t.dtype for t in operands)) or "?"


def _second_operand(kernel: Kernel) -> tuple[TensorType, ...]:
    if _FUSED_ATTENTION in kernel.name:
        return kernel.inputs[1:2]  # k; a mask or position bias is a constant, and stays float
    # A weight that is dequantized by a kernel of its own arrives as the second input, and then
    # the largest constant is the bias, [1, C, 1, 1] or [1, N]. A fused skip is also an input.
    constants = [t for t in kernel.constants if len(t.shape) > 1]
    largest = max(constants, key=lambda t: t.elements or 0, default=None)
    if largest is not None and not (len(kernel.inputs) > 1 and _is_bias(largest)):
        return (largest,)
    return kernel.inputs[1:2]


def _is_bias(tensor: TensorType) -> bool:
    return tensor.shape[0] == 1 and all(dim == 1 for dim in tensor.shape[2:])


def _neighbours(kernels: Sequence[Kernel]) -> list[tuple[int, ...]]:
    """For each kernel without nodes, the nearest ones with nodes: upstream, else downstream."""
    writers = {t.name: i for i, kernel in enumerate(kernels) for t in kernel.outputs}
    readers: dict[str, list[int]] = {}
    for i, kernel in enumerate(kernels):
        for tensor in kernel.inputs:
            readers.setdefault(tensor.name, []).append(i)
    before = [[writers[t.name] for t in k.inputs if t.name in writers] for k in kernels]
    after = [[i for t in k.outputs for i in readers.get(t.name, ())] for k in kernels]
    named = [bool(kernel.nodes) for kernel in kernels]
    return [
        () if named[i] else _nearest(i, before, named) or _nearest(i, after, named)
        for i in range(len(kernels))
    ]


def _nearest(start: int, edges: Sequence[Sequence[int]], named: Sequence[bool]) -> tuple[int, ...]:
    found: dict[int, None] = {}
    stack, seen = list(edges[start]), {start}
    while stack:
        index = stack.pop()
        if index in seen:
            continue
        seen.add(index)
        if named[index]:
            found[index] = None
        else:
            stack.extend(edges[index])
    return tuple(sorted(found))


def _row(row: KernelReport) -> dict[str, Any]:
    plain = asdict(row)
    kernel = plain.pop("kernel")
    kernel.pop("nodes")
    return {**kernel, **plain}
