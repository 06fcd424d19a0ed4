"""What a group of the catalogue is: a pattern and a contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import onnx_graphsurgeon as gs

from fusewright.match.matcher import Match
from fusewright.match.pattern import Pattern
from fusewright.match.scene import Scene

PER_TENSOR = None


class Slot(NamedTuple):
    """An input slot of a node inside a group."""

    node: str
    slot: int


class FixedPair(NamedTuple):
    """An input slot inside a group, and the threshold that the contract fixes for its pair."""

    node: str
    slot: int
    threshold: float


@dataclass(frozen=True)
class Finding:
    """One group found in a graph.

    Attributes:
        nodes: its nodes.
        inputs: the computed tensors it reads, in the order of the call.
        parameters: the stored tensors behind them, by name.
        outputs: the tensors it writes for others.
        to_quantize: positions in `inputs` that get a Q/DQ pair.
        fixed: reads of an interior tensor that get a pair of a fixed clipping threshold.
        interior: reads of an interior tensor that get a pair with a calibrated range.
        details: what is known of it beyond its kind, such as head size or window; plain values.
    """

    nodes: tuple[gs.Node, ...]
    anchor: gs.Node
    inputs: tuple[gs.Tensor, ...]
    parameters: Mapping[str, gs.Tensor]
    outputs: tuple[gs.Tensor, ...]
    to_quantize: frozenset[int] = frozenset()
    fixed: tuple[FixedPair, ...] = ()
    interior: tuple[Slot, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


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
        moves_pairs: its layout operators let Q/DQ pairs through.
        never_quantized: why the contract asks for no pair at all, where it asks for none.
        rejects: a condition that no pattern can say; returns what was found instead.
        grow: where the pattern is only what the group is found by: the group itself, or why
            there is none.
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
    moves_pairs: bool = False
    never_quantized: str = "its contract asks for no Q/DQ: it does not commute with them"
    rejects: Callable[[Match], str | None] | None = None
    grow: Callable[[Match, Scene], Finding | str] | None = None

    def found(self, match: Match, scene: Scene) -> Finding | str:
        """The group behind a match of the pattern, or what was found in its place."""
        problem = self.rejects(match) if self.rejects is not None else None
        if problem is not None:
            return problem
        if self.grow is not None:
            return self.grow(match, scene)
        return Finding(
            nodes=match.nodes,
            anchor=match.named[self.anchor],
            inputs=tuple(match.tensors[name] for name in self.inputs),
            parameters={n: match.tensors[n] for n in self.parameters if n in match.tensors},
            outputs=(match.output,),
            to_quantize=self.inputs_to_quantize,
        )
