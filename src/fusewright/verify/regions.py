"""Proof by regions: for graphs too large to run whole, only what a rewrite changed is run.

A node that both models have, with the same attributes, stored inputs and tensor names, computes
the same by induction over the order of the graph. What is left falls into regions between tensors
that both models name. Each region is run from both models on the same random inputs, with its own
weights. Regions of one structure share their sessions, in which weights are inputs; where the
rewrite left the weights alone, regions of one structure and size are proven once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from fusewright.errors import ModelError
from fusewright.graph.collector import without_gc
from fusewright.verify.distance import Comparison, OutputError
from fusewright.verify.side import Side, attributes_of, is_same_stored
from fusewright.verify.statement import Draft, Region, Shapes, Statement


def compare_by_regions(
    before: onnx.ModelProto, after: onnx.ModelProto, folder: Path | None = None
) -> Comparison:
    """The worst error among the regions in which two models differ.

    Args:
        before: the model as it was.
        after: the rewritten one, with the same names where a tensor is the same.
        folder: where the weights lie that the models refer to.

    Raises:
        ModelError: a region cannot be run: a shape is unknown, or onnxruntime refuses it.
    """
    with without_gc():
        return Comparison((_worst(before, after, folder),))


def _worst(before: onnx.ModelProto, after: onnx.ModelProto, folder: Path | None) -> OutputError:
    old, new = Side.of(before), Side.of(after)
    shapes = Shapes(before, after)
    statements: dict[Hashable, Statement] = {}
    proven: set[Hashable] = set()
    worst = OutputError("nothing changed", 0.0)
    for region in _regions(old, new):
        draft = Draft(old, new, shapes, folder)
        structure = draft.structure(region)
        statement = None if draft.has_changed_weights else (structure, draft.sizes())
        if statement in proven:
            continue
        if structure not in statements:
            statements[structure] = draft.statement()
        found = statements[structure].check(draft.feed())
        worst = max(
            worst,
            *(replace(e, name=n) for e, n in zip(found.outputs, region.outputs, strict=True)),
            key=lambda error: error.relative,
        )
        if statement is not None:
            proven.add(statement)
    return worst


def _regions(old: Side, new: Side) -> Iterator[Region]:
    """Changed nodes of `new`, joined where they meet in a tensor that `old` does not have."""
    nodes = new.nodes
    changed = [i for i, node in enumerate(nodes) if not _is_same(node, old, new)]
    home = {i: i for i in changed}

    def find(i: int) -> int:
        while home[i] != i:
            home[i] = home[home[i]]
            i = home[i]
        return i

    for i in changed:
        for name in new.reads[i]:
            maker = new.producer.get(name)
            if maker in home and not old.has(name):
                home[find(maker)] = find(i)
    members: dict[int, list[int]] = {}
    for i in changed:
        members.setdefault(find(i), []).append(i)
    readers = _read_outside(new, home, find)
    for root, inside in members.items():
        outputs = [o for i in inside for o in nodes[i].output if o in readers.get(root, ())]
        missing = next((o for o in outputs if not old.has(o)), None)
        if missing is not None:
            raise ModelError(f"tensor '{missing}' is an output of the rewritten model only")
        yield Region(_slice(old, new, inside, outputs), inside, outputs)


def _read_outside(new: Side, home: dict[int, int], find: object) -> dict[int, set[str]]:
    """For each region, the tensors that other nodes or the model's outputs read."""
    assert callable(find)
    outside: dict[int, set[str]] = {}
    for i, names in enumerate(new.reads):
        mine = find(i) if i in home else None
        for name in names:
            maker = new.producer.get(name)
            if maker in home and find(maker) != mine:
                outside.setdefault(find(maker), set()).add(name)
    for value in new.proto.graph.output:
        maker = new.producer.get(value.name)
        if maker in home:
            outside.setdefault(find(maker), set()).add(value.name)
    return outside


def _slice(old: Side, new: Side, inside: Sequence[int], outputs: Sequence[str]) -> list[int]:
    """Nodes of `old` that compute `outputs` from what the region in `new` reads."""
    edge = {name for i in inside for name in new.reads[i]}
    edge -= {name for i in inside for name in new.nodes[i].output}
    found: set[int] = set()
    waiting = [name for name in outputs if name not in edge]
    while waiting:
        i = old.producer.get(waiting.pop())
        if i is None or i in found:
            continue
        found.add(i)
        waiting += [name for name in old.reads[i] if name not in edge]
    return sorted(found)


def _is_same(node: onnx.NodeProto, old: Side, new: Side) -> bool:
    i = old.producer.get(node.output[0]) if node.output else None
    if i is None:
        return False
    other = old.nodes[i]
    if node == other:
        return all(is_same_stored(name, old, new) for name in node.input)
    return (
        node.op_type == other.op_type
        and node.domain == other.domain
        and node.input == other.input
        and node.output == other.output
        and attributes_of(node) == attributes_of(other)
        and all(is_same_stored(name, old, new) for name in node.input)
    )
