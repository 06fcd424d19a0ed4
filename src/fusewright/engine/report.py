"""What an engine became: kernels, data types, bytes, groups, and what in it could be better."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fusewright.engine.kernels import Kernel
from fusewright.engine.ranges import ShapeRange

SCHEMA = "fusewright.engine/1"
"""Marks the JSON file of a report."""

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
        milliseconds: its time, where it was measured.
    """

    kernel: Kernel
    operation: str | None
    dtype: str | None
    groups: tuple[str, ...]
    nodes: tuple[str, ...]
    inferred: bool = False
    milliseconds: float | None = None

    @property
    def activation_bytes(self) -> int | None:
        """Bytes it reads and writes, constants apart; None where a size is not known."""
        sizes = [t.nbytes for t in (*self.kernel.inputs, *self.kernel.outputs)]
        return None if None in sizes else sum(size for size in sizes if size is not None)


@dataclass(frozen=True)
class GroupReport:
    """One group and the kernels it became.

    Attributes:
        name: of its call.
        kind: in the catalogue.
        planned: what the file quantizes its conv, GEMM or attention to, such as `Int8`; None where
            it is float, or the file is not at hand.
        reached: the data types in which its conv, GEMM and attention kernels compute.
        kernels: positions in the plan; those of several groups are in each.
        merged: no kernel names a node of it, and `kernels` are those it was merged into.
        reads: data types of the tensors that come into its kernels from others.
        writes: data types of the tensors that leave them.
        activation_bytes: what its kernels read and write; None where a size is not known.
        qdq: its Quantize- and DequantizeLinear nodes, those at its boundary included.
        qdq_alone: how many of them became kernels of their own; the rest were absorbed.
        milliseconds: of its kernels, where they were measured.
    """

    name: str
    kind: str
    planned: str | None
    reached: tuple[str, ...]
    kernels: tuple[int, ...]
    merged: bool
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    activation_bytes: int | None
    qdq: int = 0
    qdq_alone: int = 0
    milliseconds: float | None = None


@dataclass(frozen=True)
class Finding:
    """One kernel that could be better.

    Attributes:
        cause: key in `advice.ADVICE`, which says what broke and what would mend it.
        kernels: positions in the plan.
        groups: the groups it concerns.
        nodes: the ONNX nodes it concerns, as TensorRT spells them.
        detail: what was seen here, such as `head size 40`.
        activation_bytes: what those kernels read and write.
    """

    cause: str
    kernels: tuple[int, ...]
    groups: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    detail: str = ""
    activation_bytes: int | None = None


@dataclass(frozen=True)
class EngineReport:
    """A built engine.

    Attributes:
        model, engine: paths; `engine` is None when the engine was not kept.
        backend, version: which TensorRT built it.
        seconds: parsing and building, wall clock; 0 where only the plan was read.
        engine_bytes: size of the serialized engine; 0 likewise.
        profiles: input name → smallest, optimal and largest shape, dynamic inputs only.
        kernels: the plan without stream synchronisation; empty where the backend prints none.
        operators: each Conv, Gemm, MatMul ... of the ONNX file → the data type its kernel computes
            in, or `generated`.
        notes: what was assumed or could not be told.
        groups: each group of the file and its kernels.
        findings: what could be better, and is explained in `advice`.
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
    groups: tuple[GroupReport, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def activation_bytes(self) -> int | None:
        """Bytes that all kernels read and write, constants apart; None with dynamic shapes."""
        return total(row.activation_bytes for row in self.kernels)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the constants in the plan, each counted once however many kernels read it."""
        constants = {t.name: t.nbytes or 0 for k in self.kernels for t in k.kernel.constants}
        return sum(constants.values())

    @property
    def milliseconds(self) -> float | None:
        """Sum of the kernels' times; None where they were not measured."""
        times = [k.milliseconds for k in self.kernels if k.milliseconds is not None]
        return sum(times) if times else None

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
        plain: dict[str, Any] = {"schema": SCHEMA}
        plain |= {name: getattr(self, name) for name in fields}
        plain["profiles"] = {name: [list(s) for s in r] for name, r in self.profiles.items()}
        plain["notes"] = list(self.notes)
        plain["kernel_count"] = len(self.kernels)
        plain["operations"] = self.operations
        plain["operators"] = dict(self.operators)
        plain["activation_bytes"] = self.activation_bytes
        plain["weight_bytes"] = self.weight_bytes
        plain["milliseconds"] = self.milliseconds
        plain["groups"] = [asdict(group) for group in self.groups]
        plain["findings"] = [asdict(finding) for finding in self.findings]
        plain["kernels"] = [_row(row) for row in self.kernels]
        return plain

    def to_json(self) -> str:
        """`to_dict` as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def total(sizes: Iterable[int | None]) -> int | None:
    """The sum; None where one is not known, or there is none."""
    known = list(sizes)
    return sum(size for size in known if size is not None) if known and None not in known else None


def _row(row: KernelReport) -> dict[str, Any]:
    plain = asdict(row)
    kernel = plain.pop("kernel")
    kernel.pop("nodes")
    return {**kernel, **plain, "activation_bytes": row.activation_bytes}
