"""The pattern language: a pattern is built by a short function written like the computation.

    def conv_relu(x: Pattern, w: Pattern, b: Pattern) -> Pattern:
        return op("Relu", op("Conv", x, w, optional(b), name="conv"))

A pattern is a tree of the few frozen classes below; the matcher walks it from the root (the last
node of the computation) towards the inputs. A node's pattern that is used twice, as in
`op("Mul", y, op("Sigmoid", y))`, is one value, as it would be in the computation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_graphsurgeon as gs

COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "Sum", "And", "Or", "Xor", "Equal"})


@dataclass(frozen=True)
class Var:
    """Any tensor that is computed or fed, bound to `name`; one name is always one tensor."""

    name: str


@dataclass(frozen=True)
class Const:
    """A stored tensor, bound to `name`.

    Attributes:
        value: with one element of any rank, within 1e-4 relative of this number (exporters write
            constants in float16 and float32, and 1/6 as 0.16667).
        test: a further condition on the tensor; `expected` says it in words.
    """

    name: str | None = None
    value: float | None = None
    test: Callable[[gs.Constant], bool] | None = None
    expected: str = "a stored tensor"


@dataclass(frozen=True)
class Optional:
    """An input that may be omitted."""

    inner: Pattern


@dataclass(frozen=True)
class OneOf:
    """The first of several spellings that matches."""

    options: tuple[Pattern, ...]


@dataclass(frozen=True)
class Op:
    """A node of one of several types.

    Attributes:
        types: operator types.
        inputs: patterns of its inputs; operand order is free for commutative operators.
        attrs: required attribute values (schema defaults apply), or tests of them.
        name: binds the node.
        skippable: the node may be missing, its first input then stands for it.
    """

    types: frozenset[str]
    inputs: tuple[Pattern, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    skippable: bool = False
    domain: str | None = None

    def may_start_with(self, op: str) -> bool:
        """Whether a tensor made by `op` can be laid under this pattern."""
        return self.skippable or op in self.types


Pattern = Var | Const | Optional | OneOf | Op


def var(name: str) -> Var:
    """Any tensor."""
    return Var(name)


def const(name: str | None = None, **conditions: Any) -> Const:
    """A stored tensor."""
    return Const(name, **conditions)


def number(value: float) -> Const:
    """A one-element constant of this value."""
    return Const(value=value, expected=f"the constant {value:g}")


def optional(inner: Pattern) -> Optional:
    """An input that may be omitted."""
    return Optional(inner)


def one_of(*options: Pattern) -> OneOf:
    """The first alternative that matches."""
    return OneOf(options)


def op(types: str, *inputs: Pattern, name: str | None = None, **attrs: Any) -> Op:
    """A node; `types` may name several operators, separated by `|`."""
    return Op(frozenset(types.split("|")), inputs, attrs, name)


def maybe(types: str, *inputs: Pattern, name: str | None = None, **attrs: Any) -> Op:
    """A node that may be missing; its first input is then taken in its place."""
    return Op(frozenset(types.split("|")), inputs, attrs, name, skippable=True)


def root_types(pattern: Pattern) -> frozenset[str]:
    """Operator types that the last node of a match can have."""
    if isinstance(pattern, OneOf):
        return frozenset().union(*(root_types(option) for option in pattern.options))
    if isinstance(pattern, Op):
        below = root_types(pattern.inputs[0]) if pattern.skippable else frozenset()
        return pattern.types | below
    return frozenset()


def repeated(pattern: Pattern) -> frozenset[int]:
    """Identities of the nodes' patterns that stand in more than one place."""
    seen: set[int] = set()
    twice: set[int] = set()

    def visit(inner: Pattern) -> None:
        if isinstance(inner, (Op, OneOf)):
            (twice if id(inner) in seen else seen).add(id(inner))
        below = inner.inputs if isinstance(inner, Op) else ()
        below = inner.options if isinstance(inner, OneOf) else below
        for one in (inner.inner,) if isinstance(inner, Optional) else below:
            visit(one)

    visit(pattern)
    return frozenset(twice)
