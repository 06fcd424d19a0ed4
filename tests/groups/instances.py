"""Instances of a pattern: every graph that it describes, built from the pattern itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.model import Interface, Model
from fusewright.match.pattern import Const, OneOf, Op, Optional, Pattern, Var

OPSET = 17
# A stored tensor has the first of these that passes the pattern's test.
_SHAPES = ((4,), (4, 4), (), (4, 1, 1))


class Choices:
    """Counts through all combinations of the choices that a function makes, like an odometer."""

    def __init__(self, start: list[int]) -> None:
        self._start = start
        self._taken: list[tuple[int, int]] = []

    def pick(self, count: int) -> int:
        """One of `count` possibilities."""
        position = len(self._taken)
        value = self._start[position] if position < len(self._start) else 0
        self._taken.append((value, count))
        return value

    def next(self) -> list[int] | None:
        """Where the next combination starts; None behind the last."""
        taken = list(self._taken)
        while taken and taken[-1][0] == taken[-1][1] - 1:
            taken.pop()
        if not taken:
            return None
        return [value for value, _ in taken[:-1]] + [taken[-1][0] + 1]


@dataclass
class Instance:
    """One graph that a pattern describes; the pattern's root is the last node."""

    choices: Choices
    all_types: bool
    nodes: list[gs.Node] = field(default_factory=list)
    bound: dict[object, gs.Tensor] = field(default_factory=dict)
    numbers: list[gs.Constant] = field(default_factory=list)

    def build(self, pattern: Pattern) -> gs.Tensor:
        # A pattern object that stands in two places is one value.
        named = getattr(pattern, "name", None) if isinstance(pattern, (Var, Const)) else None
        key = named or id(pattern)
        if key not in self.bound:
            self.bound[key] = self._build(pattern)
        return self.bound[key]

    def _build(self, pattern: Pattern) -> gs.Tensor:
        if isinstance(pattern, Var):
            return gs.Variable(pattern.name, dtype=np.float32)
        if isinstance(pattern, Const):
            return self._constant(pattern)
        if isinstance(pattern, OneOf):
            return self.build(pattern.options[self.choices.pick(len(pattern.options))])
        if isinstance(pattern, Optional):
            return self.build(pattern.inner) if self.choices.pick(2) else gs.Variable.empty()
        if pattern.skippable and self.choices.pick(2):
            return self.build(pattern.inputs[0])
        return self._node(pattern)

    def _node(self, pattern: Op) -> gs.Tensor:
        types = sorted(pattern.types)
        op = types[self.choices.pick(len(types))] if self.all_types else types[0]
        inputs = [self.build(inner) for inner in pattern.inputs]
        number = len(self.nodes)
        output = gs.Variable(f"y{number}", dtype=np.float32)
        attrs = {k: v for k, v in pattern.attrs.items() if not callable(v)}
        self.nodes.append(gs.Node(op, f"{op}_{number}", attrs, inputs, [output]))
        return output

    def _constant(self, pattern: Const) -> gs.Constant:
        name = f"c{len(self.bound)}"
        if pattern.value is not None:
            self.numbers.append(gs.Constant(name, np.array(pattern.value, np.float32)))
            return self.numbers[-1]
        stored = (gs.Constant(name, np.ones(shape, np.float32)) for shape in _SHAPES)
        return next(t for t in stored if pattern.test is None or pattern.test(t))

    def model(self) -> Model:
        inputs = [t for t in self.bound.values() if isinstance(t, gs.Variable) and not t.inputs]
        inputs = [t for t in inputs if t.name]
        graph = gs.Graph(list(self.nodes), inputs, [self.nodes[-1].outputs[0]], opset=OPSET)
        return Model(Path("instance.onnx"), graph, {}, Interface((), ()))

    def __str__(self) -> str:
        return " ".join(node.op for node in self.nodes)


def instances(pattern: Pattern, *, all_types: bool = False) -> Iterator[Instance]:
    """Every graph of `pattern`; of the operator types of a node the first only, or all."""
    start: list[int] | None = []
    while start is not None:
        instance = Instance(Choices(start), all_types)
        instance.build(pattern)
        start = instance.choices.next()
        yield instance
