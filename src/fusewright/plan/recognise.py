"""Recognising: the catalogue laid over the graph, largest group first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from fusewright.graph.collector import without_gc
from fusewright.graph.model import Model
from fusewright.graph.symbolic import annotate
from fusewright.graph.walk import STANDARD_DOMAINS, levels, producer
from fusewright.groups import CATALOGUE, Finding, GroupKind
from fusewright.match.matcher import Matcher, Miss
from fusewright.match.pattern import root_types
from fusewright.match.scene import Scene, probe_sizes, static_batch
from fusewright.plan.plan import HEAVY_OPS, Group, Plan, Unclaimed


@dataclass
class _Search:
    """One walk of the catalogue over one graph."""

    model: Model
    scene: Scene
    position: dict[int, int]
    level: dict[int, int]
    by_op: dict[str, list[gs.Node]]
    claimed: set[int] = field(default_factory=set)
    groups: list[Group] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    deepest: dict[int, Miss] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def recognise(
    model: Model,
    catalogue: Sequence[GroupKind] = CATALOGUE,
    known_misses: Iterable[Miss] = (),
) -> tuple[Plan, list[Miss]]:
    """Lays the catalogue over the model.

    Args:
        known_misses: what earlier stages could not rewrite; reasons for ops left unclaimed.

    Returns:
        A plan without decisions, groups in topological order, and the near misses.
    """
    nodes = model.graph.nodes
    by_op: dict[str, list[gs.Node]] = defaultdict(list)
    for node in nodes:
        by_op[node.op].append(node)
    position = {id(node): i for i, node in enumerate(nodes)}
    if by_op["Softmax"]:
        annotate(model)  # what layout does is told by the shapes it does it to
    graph = model.graph
    scene = Scene(model.opset, tuple(graph.outputs), probe_sizes(graph), static_batch(graph))
    search = _Search(model, scene, position, levels(nodes), by_op)
    search.claimed.update(id(node) for node in nodes if node.name in model.frozen)
    with without_gc():
        for kind in catalogue:
            _search_kind(kind, search)
    index = {node.name: i for i, node in enumerate(nodes)}
    search.groups.sort(key=lambda group: index[group.members[-1]])
    unclaimed = _unclaimed(search, list(known_misses))
    return Plan(model, search.groups, unclaimed), search.misses


def _search_kind(kind: GroupKind, search: _Search) -> None:
    matcher = Matcher(kind.kind, kind.pattern, search.model.opset, search.model.graph.outputs)
    roots = [node for op in root_types(kind.pattern) for node in search.by_op[op]]
    # Backwards: a pattern whose last node is optional then meets the longer form first.
    roots.sort(key=lambda node: -search.position[id(node)])
    for root in roots:
        if id(root) in search.claimed:
            continue
        finding = _best(kind, matcher, root, search)
        if finding is not None:
            search.claimed.update(id(node) for node in finding.nodes)
            search.groups.append(_to_group(kind, finding, search))
        elif (miss := matcher.miss) is not None:
            if miss.depth > 1:
                search.misses.append(miss)
            # Of kinds that come as far as each other the last, which is the simplest.
            if id(root) not in search.deepest or search.deepest[id(root)].depth <= miss.depth:
                search.deepest[id(root)] = miss


def _best(kind: GroupKind, matcher: Matcher, root: gs.Node, search: _Search) -> Finding | None:
    """Of several ways to end at `root`, the one on the longer branch, then the first in order."""
    candidates: list[Finding] = []
    refused: list[tuple[str, int]] = []
    for match in matcher.all_at(root):
        finding = kind.found(match, search.scene)
        if isinstance(finding, str):
            refused.append((finding, len(match.nodes)))
        elif not any(id(node) in search.claimed for node in finding.nodes):
            candidates.append(finding)
            if kind.grow is not None:
                break  # there is one group at a core; the matcher lays the longest one first
    if refused and not candidates:
        # Deeper than any other way of laying the pattern: the first one held to its end.
        found, depth = refused[0]
        depth = max(depth, 0 if matcher.miss is None else matcher.miss.depth)
        matcher.fail(root, kind.formula, found, depth + 1)
    return max(candidates, key=lambda finding: _precedence(finding, search), default=None)


def _precedence(finding: Finding, search: _Search) -> tuple[int, int]:
    source = producer(finding.inputs[0])
    branch = 0 if source is None else search.level[id(source)]
    return branch, -min(search.position[id(node)] for node in finding.nodes)


def _to_group(kind: GroupKind, finding: Finding, search: _Search) -> Group:
    members = sorted(finding.nodes, key=lambda node: search.position[id(node)])
    origins = dict.fromkeys(o for node in members for o in search.model.origin(node))
    # conv(x) + x reads one tensor: one input of the call.
    read = [tensor.name for tensor in finding.inputs]
    inputs = tuple(dict.fromkeys(read))
    return Group(
        kind=kind.kind,
        name=_name(finding.anchor, search),
        nodes=tuple(origins),
        inputs=inputs,
        parameters={name: tensor.name for name, tensor in finding.parameters.items()},
        outputs=tuple(tensor.name for tensor in finding.outputs),
        members=tuple(node.name for node in members),
        ops=tuple(dict.fromkeys(node.op for node in members)),
        inputs_to_quantize=tuple(sorted({inputs.index(read[i]) for i in finding.to_quantize})),
        details=dict(finding.details),
        fixed=finding.fixed,
        interior=finding.interior,
    )


def _name(anchor: gs.Node, search: _Search) -> str:
    name = number = (search.model.origin(anchor) or (anchor.name,))[0]
    suffix = 1
    while number in search.names:
        suffix += 1
        number = f"{name}_{suffix}"
    search.names.add(number)
    return str(number)


def _unclaimed(search: _Search, known: Sequence[Miss]) -> list[Unclaimed]:
    graph, found = search.model.graph, []
    reasons = {miss.node: miss for miss in known}
    for node in graph.nodes:
        if node.domain not in STANDARD_DOMAINS and node.op.endswith(tuple(HEAVY_OPS)):
            # FusedConv and the like are what onnxruntime's own optimizer leaves in a file.
            other = f"an operator of '{node.domain}'; groups are of standard ones"
            found.append(Unclaimed(node.op, _file_name(node, search.model), other))
        elif node.op in HEAVY_OPS and node.name in search.model.frozen:
            behind = "behind a custom operator that onnxruntime cannot run"
            found.append(Unclaimed(node.op, _file_name(node, search.model), behind))
        elif node.op in HEAVY_OPS and id(node) not in search.claimed:
            miss = search.deepest.get(id(node)) or reasons.get(node.name)
            reason = str(miss) if miss is not None else f"no group has a {node.op}"
            found.append(Unclaimed(node.op, _file_name(node, search.model), reason))
        for subgraph in node.subgraphs(recursive=True):
            where = f"inside a subgraph of {node.op} '{node.name}', which is left as it was"
            found += [
                Unclaimed(inner.op, inner.name or inner.outputs[0].name, where)
                for inner in subgraph.nodes
                if inner.op in HEAVY_OPS
            ]
    return found


def _file_name(node: gs.Node, model: Model) -> str:
    origin = model.origin(node)
    return origin[0] if origin else str(node.name)
