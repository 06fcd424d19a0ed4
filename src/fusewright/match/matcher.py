"""The matcher: lays a pattern over the graph, backwards from a node, trying every spelling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.walk import (
    STANDARD_DOMAINS,
    attribute,
    is_constant,
    producer,
    scalar,
)
from fusewright.match.pattern import (
    COMMUTATIVE,
    Again,
    Chain,
    Const,
    Extra,
    OneOf,
    Op,
    Pattern,
    Var,
    repeated,
)

_RELATIVE = 1e-4
# What rounding to half takes from a number.
_HALF = {np.dtype(np.float16): 2.0**-11, np.dtype(ml_dtypes.bfloat16): 2.0**-8}


@dataclass(frozen=True)
class Miss:
    """Why a pattern does not hold: the deepest point reached.

    Attributes:
        pattern: name of the group or rule.
        node: name of the node where it failed.
        expected: what the pattern asks for there.
        found: what is there.
        depth: how many nodes had matched by then.
    """

    pattern: str
    node: str
    expected: str
    found: str
    depth: int = 0

    def __str__(self) -> str:
        """One line for people."""
        return f"expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class Match:
    """A pattern laid over the graph.

    Attributes:
        root: the last node.
        nodes: every matched node, the root first.
        tensors: the tensors bound by name.
        named: the nodes bound by name.
    """

    root: gs.Node
    nodes: tuple[gs.Node, ...]
    tensors: dict[str, gs.Tensor]
    named: dict[str, gs.Node]

    @property
    def output(self) -> gs.Tensor:
        """What the match computes."""
        return self.root.outputs[0]


class _State(NamedTuple):
    nodes: tuple[gs.Node, ...] = ()
    tensors: tuple[tuple[str, gs.Tensor], ...] = ()
    named: tuple[tuple[str, gs.Node], ...] = ()
    laid: tuple[tuple[int, gs.Tensor], ...] = ()

    def find(self, name: str) -> gs.Tensor | None:
        return next((t for n, t in self.tensors if n == name), None)

    def laid_on(self, pattern: Pattern) -> gs.Tensor | None:
        return next((t for key, t in self.laid if key == id(pattern)), None)

    def numbered(self, name: str, tensor: gs.Tensor) -> _State:
        number = sum(bound.startswith(name) for bound, _ in self.tensors)
        return self._replace(tensors=(*self.tensors, (f"{name}{number}", tensor)))

    def has(self, node: gs.Node) -> bool:
        return any(n is node for n in self.nodes)


class Matcher:
    """Matches one pattern at many nodes of one graph, and remembers the deepest near miss."""

    def __init__(self, name: str, pattern: Pattern, opset: int, outputs: Sequence[gs.Tensor]):
        """`outputs` are the graph's outputs: interior values may not be among them."""
        self.name, self.pattern, self.opset = name, pattern, opset
        self._outputs = {id(t) for t in outputs}
        self._repeated = repeated(pattern)
        self.miss: Miss | None = None

    def all_at(self, root: gs.Node) -> Iterator[Match]:
        """Every way the pattern ends at `root`; afterwards `miss` holds the deepest failure."""
        self.miss = None
        if not root.outputs:
            return
        for state in self._tensor(self.pattern, root.outputs[0], _State()):
            if state.nodes and state.nodes[0] is root and self._is_closed(state):
                yield Match(root, state.nodes, dict(state.tensors), dict(state.named))

    def at(self, root: gs.Node) -> Match | None:
        """The first match that ends at `root`."""
        return next(self.all_at(root), None)

    def fail(self, node: gs.Node, expected: str, found: str, depth: int) -> None:
        """Remembers a failure if it is the deepest so far."""
        if self.miss is None or depth > self.miss.depth:
            self.miss = Miss(self.name, node.name, expected, found, depth)

    def _is_closed(self, state: _State) -> bool:
        """Interior values are read inside only, and no boundary tensor is made inside."""
        inside = {id(n) for n in state.nodes}
        root = state.nodes[0]
        for node in state.nodes:
            for tensor in node.outputs:
                leaks = id(tensor) in self._outputs or any(
                    id(c) not in inside for c in tensor.outputs
                )
                if leaks and node is not root:
                    where = f"'{tensor.name}' used elsewhere"
                    self.fail(node, "an interior value used once", where, len(state.nodes))
                    return False
        for name, tensor in state.tensors:
            if any(id(p) in inside for p in tensor.inputs):
                self.fail(root, f"'{name}' from outside", "a value of the group", len(state.nodes))
                return False
        return True

    def _tensor(self, pattern: Pattern, tensor: gs.Tensor, state: _State) -> Iterator[_State]:
        if id(pattern) in self._repeated:
            laid = state.laid_on(pattern)
            if laid is tensor:
                yield state
                return
            if laid is not None:
                self._miss(state, f"'{laid.name}' again", f"'{tensor.name}'")
                return
            state = state._replace(laid=(*state.laid, (id(pattern), tensor)))
        yield from self._lay(pattern, tensor, state)

    def _lay(self, pattern: Pattern, tensor: gs.Tensor, state: _State) -> Iterator[_State]:
        if isinstance(pattern, Op):
            yield from self._op(pattern, tensor, state)
        elif isinstance(pattern, Var):
            yield from self._bind(pattern, tensor, state)
        elif isinstance(pattern, Const):
            yield from self._const(pattern, tensor, state)
        elif isinstance(pattern, OneOf):
            yield from self._one_of(pattern, tensor, state)
        elif isinstance(pattern, Extra):
            yield from self._extra(pattern, tensor, state)
        elif isinstance(pattern, (Chain, Again)):
            chain = pattern.chain if isinstance(pattern, Again) else pattern
            node = producer(tensor)
            if node is not None and node.op in chain.starts:
                yield from self._tensor(chain.step, tensor, state)
            yield from self._tensor(chain.inner, tensor, state)
        elif tensor.is_empty():
            yield state
        else:
            yield from self._tensor(pattern.inner, tensor, state)

    def _one_of(self, pattern: OneOf, tensor: gs.Tensor, state: _State) -> Iterator[_State]:
        node = producer(tensor)
        kept, holds = self.miss, False
        for option in pattern.options:
            # Most of a dozen spellings fall at their first operator.
            if node is not None and isinstance(option, Op) and not option.may_start_with(node.op):
                self.fail(node, _names(option.types), node.op, len(state.nodes))
                continue
            for grown in self._tensor(option, tensor, state):
                # Where one spelling holds, how the others failed explains nothing.
                self.miss, holds = kept, True
                yield grown
                kept = self.miss
        if holds:
            self.miss = kept

    def _bind(self, pattern: Var, tensor: gs.Tensor, state: _State) -> Iterator[_State]:
        bound = state.find(pattern.name)
        if is_constant(tensor) or tensor.is_empty():
            self._miss(state, f"a computed tensor '{pattern.name}'", "a constant")
        elif bound is None:
            yield state._replace(tensors=(*state.tensors, (pattern.name, tensor)))
        elif bound is tensor:
            yield state
        else:
            self._miss(state, f"'{bound.name}' again", f"'{tensor.name}'")

    def _extra(self, pattern: Extra, tensor: gs.Tensor, state: _State) -> Iterator[_State]:
        if tensor.is_empty():
            self._miss(state, f"a tensor '{pattern.name}'", "nothing")
            return
        yield state.numbered(pattern.name, tensor)

    def _const(self, pattern: Const, tensor: gs.Tensor, state: _State) -> Iterator[_State]:
        if not is_constant(tensor):
            self._miss(state, pattern.expected, f"the computed tensor '{tensor.name}'")
        elif (pattern.value is not None and not _close(tensor, pattern.value)) or (
            pattern.test is not None and not pattern.test(tensor)
        ):
            self._miss(state, pattern.expected, _describe(tensor))
        elif pattern.name is None:
            yield state
        elif pattern.many:
            yield state.numbered(pattern.name, tensor)
        else:
            bound = state.find(pattern.name)
            if bound is None:
                yield state._replace(tensors=(*state.tensors, (pattern.name, tensor)))
            elif bound is tensor:
                yield state

    def _op(self, pattern: Op, tensor: gs.Tensor, state: _State) -> Iterator[_State]:
        node = producer(tensor)
        if node is None:
            if not pattern.skippable:
                kind = "constant" if is_constant(tensor) else "input"
                self._miss(state, _names(pattern.types), f"the {kind} '{tensor.name}'")
        elif not self._fits(pattern, node, tensor, state):
            pass
        elif state.has(node):
            yield from self._operands(pattern, node, state)
        else:
            named = state.named
            if pattern.name is not None:
                named = (*named, (pattern.name, node))
            grown = state._replace(nodes=(*state.nodes, node), named=named)
            yield from self._operands(pattern, node, grown)
        if pattern.skippable:
            yield from self._tensor(pattern.inputs[0], tensor, state)

    def _fits(self, pattern: Op, node: gs.Node, tensor: gs.Tensor, state: _State) -> bool:
        domain = STANDARD_DOMAINS if pattern.domain is None else (pattern.domain,)
        if node.op not in pattern.types or node.domain not in domain:
            if not pattern.skippable:
                self.fail(node, _names(pattern.types), node.op, len(state.nodes))
            return False
        if node.outputs[0] is not tensor:
            self.fail(node, f"the first output of {node.op}", tensor.name, len(state.nodes))
            return False
        for name, wanted in pattern.attrs.items():
            found = attribute(node, name, self.opset)
            if not (wanted(found) if callable(wanted) else found == wanted):
                text = "another value" if callable(wanted) else f"{wanted}"
                self.fail(node, f"{node.op}.{name} = {text}", f"{found}", len(state.nodes))
                return False
        return True

    def _operands(self, pattern: Op, node: gs.Node, state: _State) -> Iterator[_State]:
        tensors = list(node.inputs)
        while len(tensors) > len(pattern.inputs) and tensors[-1].is_empty():
            tensors.pop()
        if len(tensors) > len(pattern.inputs):
            self.fail(node, f"{len(pattern.inputs)} inputs", f"{len(tensors)}", len(state.nodes))
            return
        tensors += [gs.Variable.empty()] * (len(pattern.inputs) - len(tensors))
        yield from self._inputs(pattern.inputs, tensors, state)
        if node.op in COMMUTATIVE and len(tensors) == 2:
            yield from self._inputs(pattern.inputs, tensors[::-1], state)

    def _inputs(
        self, patterns: Sequence[Pattern], tensors: Sequence[gs.Tensor], state: _State
    ) -> Iterator[_State]:
        if not patterns:
            yield state
            return
        for grown in self._tensor(patterns[0], tensors[0], state):
            yield from self._inputs(patterns[1:], tensors[1:], grown)

    def _miss(self, state: _State, expected: str, found: str) -> None:
        if state.nodes:
            self.fail(state.nodes[-1], expected, found, len(state.nodes))


@lru_cache(maxsize=256)
def _names(types: frozenset[str]) -> str:
    return " or ".join(sorted(types))


def _close(tensor: gs.Constant, wanted: float) -> bool:
    found = scalar(tensor)
    if found is None:
        return False
    if any(found == float(np.asarray(wanted).astype(half)) for half in _HALF):
        return True  # it was stored in half, wherever it is now
    tolerance = _HALF.get(numpy_type(tensor.dtype), _RELATIVE)
    return abs(found - wanted) <= tolerance * max(abs(wanted), 1e-12)


def _describe(tensor: gs.Tensor) -> str:
    one = scalar(tensor)
    if one is not None:
        return f"{one:g}"
    return f"a constant of shape {list(tensor.shape)}"
