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
class Extra:
    """Any tensor, computed or stored, bound to `name` and a number: a mask, a bias, another one."""

    name: str


@dataclass(frozen=True)
class Const:
    """A stored tensor, bound to `name`.

    Attributes:
        value: with one element of any rank, within 1e-4 relative of this number (exporters write
            constants in float16 and float32, and 1/6 as 0.16667).
        test: a further condition on the tensor; `expected` says it in words.
        many: bound to `name` and a number, as one of several.
    """

    name: str | None = None
    value: float | None = None
    test: Callable[[gs.Constant], bool] | None = None
    expected: str = "a stored tensor"
    many: bool = False


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


@dataclass(frozen=True)
class Chain:
    """Zero or more steps on the way to `inner`; a step's pattern holds `Again` where it goes on.

    `starts` are the operators that a step can end with.
    """

    inner: Pattern
    step: Pattern
    starts: frozenset[str]


class Again:
    """The place in a chain's step where the chain goes on."""

    chain: Chain


Pattern = Var | Extra | Const | Optional | OneOf | Op | Chain | Again


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


def extra(name: str) -> Extra:
    """Any tensor, one of several under this name."""
    return Extra(name)


def chain(inner: Pattern, step: Callable[[Pattern], Pattern]) -> Chain:
    """`inner`, or step(inner), or step(step(inner)) and so on, the longest first."""
    again = Again()
    pattern = step(again)
    again.chain = Chain(inner, pattern, root_types(pattern))
    return again.chain


def root_types(pattern: Pattern) -> frozenset[str]:
    """Operator types that the last node of a match can have."""
    if isinstance(pattern, OneOf):
        return frozenset().union(*(root_types(option) for option in pattern.options))
    if isinstance(pattern, Op):
        below = root_types(pattern.inputs[0]) if pattern.skippable else frozenset()
        return pattern.types | below
    if isinstance(pattern, Chain):
        return root_types(pattern.step) | root_types(pattern.inner)
    return frozenset()


def required_types(pattern: Pattern) -> frozenset[str]:
    """Operator types that every match holds: where one is not in a graph, nothing can match."""
    return _required(pattern, {})


def _required(pattern: Pattern, known: dict[int, frozenset[str]]) -> frozenset[str]:
    # A value stands in many places of a pattern, in each of its spellings.
    found = known.get(id(pattern))
    if found is None:
        found = known[id(pattern)] = _required_by(pattern, lambda inner: _required(inner, known))
    return found


def _required_by(pattern: Pattern, required: Callable[[Pattern], frozenset[str]]) -> frozenset[str]:
    match pattern:
        case Op(skippable=True):
            return required(pattern.inputs[0])
        case Op():
            own = pattern.types if len(pattern.types) == 1 else frozenset()
            return own.union(*map(required, pattern.inputs))
        case OneOf():
            return frozenset.intersection(*map(required, pattern.options))
    return frozenset()


def _below(pattern: Pattern) -> tuple[Pattern, ...]:
    match pattern:
        case Op():
            return pattern.inputs
        case OneOf():
            return pattern.options
        case Optional():
            return (pattern.inner,)
        case Chain():
            return pattern.step, pattern.inner
    return ()


def repeated(pattern: Pattern) -> frozenset[int]:
    """Identities of the nodes' patterns that stand in more than one place."""
    seen: set[int] = set()
    twice: set[int] = set()

    def visit(inner: Pattern) -> None:
        if id(inner) in seen:
            # What is inside stands in one place: this one.
            twice.update({id(inner)} if isinstance(inner, (Op, OneOf)) else ())
            return
        seen.add(id(inner))
        for one in _below(inner):
            visit(one)

    visit(pattern)
    return frozenset(twice)
