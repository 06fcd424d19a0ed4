"""What a group of the catalogue is: a pattern and a contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fusewright.match.matcher import Match
from fusewright.match.pattern import Pattern

PER_TENSOR = None


@dataclass(frozen=True)
class GroupKind:
    """One kind of group.

    Attributes:
        kind: its name, which is also the name of its local function.
        formula: the computation in one line.
        pattern: the subgraph, over normal forms.
        inputs: names of the computed inputs in the order of the call.
        parameters: names of the stored inputs that follow them (weights, biases).
        inputs_to_quantize: positions in `inputs` that get a Q/DQ pair.
        weights: quantized parameters and the axis of their scales; None is per tensor.
        anchor: name of the node the group is called after, and whose branch length decides where
            two matches claim one residual Add.
        needs_quantized_output: a group without weights runs in INT8 only with pairs on both
            sides; it gets its input pairs only when its output has one.
        rejects: a condition that no pattern can say; returns what was found instead.
    """

    kind: str
    formula: str
    pattern: Pattern
    inputs: tuple[str, ...] = ("x",)
    parameters: tuple[str, ...] = ()
    inputs_to_quantize: frozenset[int] = frozenset()
    weights: Mapping[str, int | None] = field(default_factory=dict)
    anchor: str = "layer"
    needs_quantized_output: bool = False
    rejects: Callable[[Match], str | None] | None = None
