"""The plan: the groups of one model, a decision for each, and the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_graphsurgeon as gs

from fusewright.errors import PlanError
from fusewright.graph.model import Model
from fusewright.groups import KINDS, FixedPair, GroupKind, Slot
from fusewright.target import FORMATS, TENSORRT, Precision, Target
from fusewright.target.precision import INT8 as INT8

FLOAT = "float"
DECISIONS = (*FORMATS, FLOAT)
OFF, AUTO = "off", "auto"
Smooth = float | str
BLOCK_SIZE = 128
_NAMED = 3  # groups in a note
HEAVY_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Attention"})


@dataclass
class Group:
    """One recognised group.

    Attributes:
        kind: its kind in the catalogue.
        name: readable and unique; the name of the call when collapsed.
        nodes: names in the input file; an unnamed node goes by its first output.
        inputs: the computed tensors it reads, in the order of the call.
        parameters: the stored tensors behind them, by their name in the kind.
        outputs: the tensors it writes for others.
        members: names of its nodes in the normalized graph, in topological order.
        inputs_to_quantize: positions in `inputs` that get a Q/DQ pair when the decision is a
            format of activations.
        details: what is known of it beyond its kind: head size, window; plain values.
        fixed: reads of interior tensors that get a pair with a fixed threshold.
        interior: reads of interior tensors that get a pair with a calibrated range.
        decision: `int8`, `fp8`, `int4` (the weights alone), `nvfp4`, `mxfp8` or `float`.
        reason: why.
        asked: whether the user asked for the decision by name: what is measured does not change it.
        hint: what speaks against the decision without forbidding it; empty where nothing does.
        apply: False switches the group off: neither quantized nor collapsed.
        smooth: how much of its input's outliers moves into its weights: an α from 0 to 1, `off` or
            `auto`; None leaves it to the run.
        prepared_as: the decision that smoothing and balancing take for its own, where a search
            decided otherwise behind them; None where it is its own.
    """

    kind: str
    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    parameters: dict[str, str]
    outputs: tuple[str, ...]
    members: tuple[str, ...]
    ops: tuple[str, ...]
    inputs_to_quantize: tuple[int, ...]
    details: dict[str, Any] = field(default_factory=dict)
    fixed: tuple[FixedPair, ...] = ()
    interior: tuple[Slot, ...] = ()
    decision: str = FLOAT
    reason: str = ""
    asked: bool = False
    hint: str = ""
    apply: bool = True
    smooth: Smooth | None = None
    prepared_as: str | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether it gets Q/DQ pairs."""
        return self.apply and self.decision != FLOAT

    def leave_float(self, reason: str) -> None:
        """Takes its format from it, in place: what spoke for or against that is past."""
        self.decision, self.reason, self.hint, self.prepared_as = FLOAT, reason, "", None

    @property
    def reads_quantized(self) -> bool:
        """Whether its inputs get pairs; weights in INT4 leave them float."""
        return self.is_quantized and not FORMATS[self.decision].weights_only

    @property
    def has_skip(self) -> bool:
        """Whether a convolution's residual Add is in it: its second input is the skip."""
        return bool(self.spec.weights) and self.spec.inputs_to_quantize == {0, 1}

    @property
    def spec(self) -> GroupKind:
        """Its kind, with pattern and contract."""
        return KINDS[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """What `inspect --json` prints of it."""
        return {
            "kind": self.kind,
            "name": self.name,
            "nodes": list(self.nodes),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "inputs_to_quantize": list(self.inputs_to_quantize),
            "details": self.details,
            "weights": [
                {"tensor": self.parameters[name], "axis": axis}
                for name, axis in self.spec.weights.items()
                if name in self.parameters
            ],
            "decision": self.decision if self.apply else FLOAT,
            "reason": self.reason if self.apply else "switched off",
            **({"hint": self.hint} if self.hint and self.is_quantized else {}),
            **({} if self.smooth is None else {"smooth": self.smooth}),
            **({} if self.prepared_as is None else {"prepared_as": self.prepared_as}),
        }


@dataclass(frozen=True)
class Unclaimed:
    """A heavy op that no group claimed, with the reason."""

    op: str
    name: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """As `inspect --json` prints it."""
        return {"op": self.op, "name": self.name, "reason": self.reason}


@dataclass
class Plan:
    """The groups of one model, a decision for each, and what no group claimed.

    Attributes:
        precision: what the whole model is made of, as `Precision.parse` reads it.
        largest: declared maximum of symbolic dimensions; decisions take one that is not declared
            for larger than any limit.
        residual: tensors of a transformer's residual stream that get a pair; None leaves them to
            the run.
        target: what the decisions were made for.
        per_tensor_weights: one scale for a whole weight, where formats have one per channel.
        block_size: rows of a weight, at most, that share a scale in a weights-only format.
    """

    model: Model
    groups: list[Group]
    unclaimed: list[Unclaimed] = field(default_factory=list)
    precision: str = INT8
    largest: dict[str, int] = field(default_factory=dict)
    residual: frozenset[str] | None = None
    target: Target = TENSORRT
    per_tensor_weights: bool = False
    block_size: int = BLOCK_SIZE

    @property
    def rest(self) -> str:
        """The type of what is not quantized."""
        return Precision.parse(self.precision).rest

    def group(self, name: str) -> Group:
        """The group of this name.

        Raises:
            PlanError: there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise PlanError(f"the model has no group '{name}'")

    def counts(self) -> dict[str, int]:
        """Number of groups by kind, in the order of the catalogue."""
        kinds = [group.kind for group in self.groups]
        return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}

    def to_dict(self) -> dict[str, Any]:
        """What `inspect --json` prints."""
        return {
            "model": str(self.model.path),
            "opset": self.model.opset,
            "groups": [group.to_dict() for group in self.groups],
            "unclaimed": [entry.to_dict() for entry in self.unclaimed],
            "notes": list(self.model.notes),
        }


def named(groups: Sequence[Group]) -> str:
    """The first few groups and how many more there are, for a note: `'a', 'b' and 3 more`."""
    names = ", ".join(f"'{group.name}'" for group in groups[:_NAMED])
    return f"{names} and {len(groups) - _NAMED} more" if len(groups) > _NAMED else names


def node_index(graph: gs.Graph) -> dict[str, gs.Node]:
    """Nodes by name."""
    return {node.name: node for node in graph.nodes}


def smooth_setting(value: object) -> Smooth | None:
    """What a user can say of smoothing: `off`, `auto` or an α from 0 to 1; None for all else."""
    if value in (OFF, AUTO):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        alpha = float(value)
    except ValueError:
        return None
    return alpha if 0.0 <= alpha <= 1.0 else None
