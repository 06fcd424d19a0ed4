"""What a normalizer is: a spelling, and the rewrite to its normal form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.edit import Names, detach, sweep
from fusewright.graph.layout import Prober
from fusewright.graph.model import Model
from fusewright.graph.symbolic import annotate
from fusewright.match.matcher import Match, Matcher, Miss
from fusewright.match.pattern import Pattern, required_types, root_types
from fusewright.match.scene import Scene, probe_sizes, static_batch


@dataclass(frozen=True)
class Rule:
    """One spelling and its normal form.

    Attributes:
        name: what the trace and the report call it.
        formula: the rewrite in one line.
        pattern: the spelling.
        rewrite: edits the graph; returns the reason where it must not be done.
        is_last: applied once, when the other rules have nothing left to do.
    """

    name: str
    formula: str
    pattern: Pattern
    rewrite: Callable[[Match, Edit], str | None]
    is_last: bool = False

    @cached_property
    def needs(self) -> frozenset[str]:
        """Operators without which the spelling is in no graph."""
        return required_types(self.pattern)


@dataclass
class Edit:
    """What a rewrite works with: the model, and fresh names."""

    model: Model
    _wanted: dict[int, tuple[gs.Node, str]] = field(default_factory=dict)

    @cached_property
    def names(self) -> Names:
        """Names that are taken; collected when the first rewrite asks for a new one."""
        return Names(self.model.graph)

    @cached_property
    def _probe(self) -> tuple[dict[str, int], Prober]:
        annotate(self.model)
        return probe_sizes(self.model.graph), Prober()

    @property
    def scene(self) -> Scene:
        """What looks for attention in the graph as it is now; layout is probed once for all."""
        sizes, probe = self._probe
        graph = self.model.graph
        return Scene(self.opset, tuple(graph.outputs), sizes, static_batch(graph), probe=probe)

    @property
    def opset(self) -> int:
        """The model's standard opset."""
        return self.model.opset

    def constant(self, name: str, array: np.ndarray) -> gs.Constant:
        """A new stored tensor."""
        return gs.Constant(self.names.fresh(name), np.asarray(array, order="C"))

    def stored(self, old: gs.Constant, array: np.ndarray) -> gs.Constant:
        """A changed value for `old`: in place where one node alone reads it, else a new tensor."""
        is_output = any(t is old for t in self.model.graph.outputs)
        if len(old.outputs) == 1 and not is_output:
            old.values = np.asarray(array, order="C")
            return old
        return self.constant(f"{old.name}_folded", array)

    def replace(self, match: Match, new: Sequence[gs.Node]) -> None:
        """Puts `new` in the place of the matched nodes; its last node writes their output.

        A new node that was to be called like one of the old ones now is.
        """
        output = match.output
        taken, old_ids = {id(n) for n in new}, {id(n) for n in match.nodes}
        old = [n for n in match.nodes if id(n) not in taken]
        freed = {n.name for n in old}
        for node in new:
            _, wanted = self._wanted.pop(id(node), (node, node.name))
            if wanted in freed:
                freed.remove(wanted)
                node.name = wanted
            self.model.merge_origins(node, match.nodes)
        for node in old:
            detach(node)
        if not any(t is output for t in new[-1].outputs):
            new[-1].outputs = [output]
        self.model.graph.nodes.extend(n for n in new if id(n) not in old_ids)

    def node(
        self,
        op: str,
        inputs: Sequence[gs.Tensor],
        name: str,
        attrs: Mapping[str, Any] | None = None,
    ) -> gs.Node:
        """A new node; its output is named after it until `replace` gives it the old one."""
        free = self.names.fresh(name)
        output = gs.Variable(self.names.fresh(f"{free}_output"))
        node = gs.Node(op, free, dict(attrs or {}), list(inputs), [output])
        self._wanted[id(node)] = node, name
        return node


@dataclass
class Outcome:
    """What one rule did to one graph."""

    rule: str
    applied: list[str] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)

    def merge(self, later: Outcome) -> None:
        """Adds what a later round did; a node that was rewritten then is no miss any more."""
        self.applied += later.applied
        done = set(self.applied)
        both = dict.fromkeys((*self.misses, *later.misses))
        self.misses = [miss for miss in both if miss.node not in done]


def apply_rule(rule: Rule, edit: Edit) -> Outcome:
    """Applies one rule wherever it holds, in node order, until nothing changes."""
    outcome = Outcome(rule.name)
    if not rule.needs <= {node.op for node in edit.model.graph.nodes}:
        return outcome
    roots = root_types(rule.pattern)
    refused: dict[int, gs.Node] = {}  # held, so that no new node gets an old one's id
    while _pass_over(rule, edit, roots, refused, outcome):
        sweep(edit.model.graph)
    return outcome


def _pass_over(
    rule: Rule, edit: Edit, roots: frozenset[str], refused: dict[int, gs.Node], outcome: Outcome
) -> bool:
    changed = False
    matcher = Matcher(rule.name, rule.pattern, edit.opset, edit.model.graph.outputs)
    for node in [n for n in edit.model.graph.nodes if n.op in roots]:
        if not node.outputs or id(node) in refused:
            continue
        match = matcher.at(node)
        if match is None:
            if matcher.miss is not None and matcher.miss.depth > 1:
                outcome.misses.append(matcher.miss)
            refused[id(node)] = node
            continue
        frozen = any(n.name in edit.model.frozen for n in match.nodes)
        reason = "a custom operator in front" if frozen else rule.rewrite(match, edit)
        if reason is None:
            outcome.applied.append(node.name)
            changed = True
        else:
            outcome.misses.append(Miss(rule.name, node.name, rule.formula, reason))
            refused[id(node)] = node
    return changed
