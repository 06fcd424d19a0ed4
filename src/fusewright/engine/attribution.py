"""Whose a kernel is: the groups and nodes it came from, and the kernels of each group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fusewright.engine.kernels import Kernel, call_of, groups_of
from fusewright.engine.operations import operand_dtype, operation_of
from fusewright.engine.outline import Outline, kind_of
from fusewright.engine.report import GENERATED, KernelReport
from fusewright.groups import KINDS


def describe_kernels(
    kernels: Sequence[Kernel],
    groups: Collection[str],
    times: Mapping[str, float] | None = None,
) -> tuple[KernelReport, ...]:
    """Names the operation, data type, groups and time of each kernel of a plan.

    Args:
        kernels: the plan.
        groups: names of the model's group calls; those of other nodes do as well.
        times: kernel name → milliseconds, where they were measured.
    """
    owned = [(groups_of(kernel, groups), kernel.nodes) for kernel in kernels]
    near = _neighbours(kernels)
    rows = []
    for index, kernel in enumerate(kernels):
        names, nodes = owned[index]
        if not nodes:
            names = tuple(dict.fromkeys(name for other in near[index] for name in owned[other][0]))
            nodes = tuple(dict.fromkeys(node for other in near[index] for node in owned[other][1]))
        operation = operation_of(kernel)
        dtype = None if operation is None else operand_dtype(kernel, operation)
        made_up, time = not kernel.nodes, (times or {}).get(kernel.name)
        rows.append(KernelReport(kernel, operation, dtype, names, nodes, made_up, time))
    return tuple(rows)


def operator_types(nodes: Sequence[str], kernels: Sequence[KernelReport]) -> dict[str, str]:
    """The data type that each of the heavy `nodes` reached; empty without a plan."""
    reached = {
        node: row.dtype or GENERATED
        for row in kernels
        if row.operation is not None
        for node in row.kernel.nodes
    }
    return {node: reached.get(node, GENERATED) for node in nodes} if kernels else {}


def groups_named(kernels: Sequence[Kernel]) -> dict[str, str]:
    """Group calls that a plan itself names → their kind, where the ONNX file is not at hand."""
    calls = (call_of(node) for kernel in kernels for node in kernel.nodes)
    kinds = {name: kind_of(function) for name, function in filter(None, calls)}
    return {name: kind for name, kind in kinds.items() if kind in KINDS}


def kernels_by_group(
    rows: Sequence[KernelReport], outline: Outline | None, kinds: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """The positions in the plan of each group's kernels.

    A group whose nodes no kernel names was merged as a whole (a Reshape that moves nothing): it
    has the kernels that write what it reads, else those that read what it writes.
    """
    found: dict[str, list[int]] = {name: [] for name in kinds}
    for index, row in enumerate(rows):
        for name in row.groups:
            if name in found:
                found[name].append(index)
    owners = _owners(rows)
    for name, positions in found.items():
        if not positions and outline is not None:
            positions += _merged_into(name, outline, owners)
    return {name: tuple(positions) for name, positions in found.items()}


def _owners(rows: Sequence[KernelReport]) -> dict[str, list[int]]:
    owners: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        for node in row.kernel.nodes:
            owners.setdefault(node, []).append(index)
    return owners


def _merged_into(group: str, outline: Outline, owners: Mapping[str, Sequence[int]]) -> list[int]:
    for step in (outline.before, outline.after):
        level, seen = list(outline.members(group)), set[str]()
        while level:
            beyond = [n for node in level for n in step(node) if n.name not in seen]
            seen.update(node.name for node in beyond)
            # TensorRT lists a DequantizeLinear under its reader: what writes the data is behind it.
            # The last kernel of a node is the one that writes what it computes.
            known = (n for n in beyond if n.name in owners and n.op != "DequantizeLinear")
            found = {owners[n.name][-1] for n in known}
            if found:
                return sorted(found)
            level = beyond
    return []


def _neighbours(kernels: Sequence[Kernel]) -> list[tuple[int, ...]]:
    """For each kernel without nodes, the nearest ones with nodes: upstream, else downstream."""
    writers = {t.name: i for i, kernel in enumerate(kernels) for t in kernel.outputs}
    readers: dict[str, list[int]] = {}
    for i, kernel in enumerate(kernels):
        for tensor in kernel.inputs:
            readers.setdefault(tensor.name, []).append(i)
    before = [[writers[t.name] for t in k.inputs if t.name in writers] for k in kernels]
    after = [[i for t in k.outputs for i in readers.get(t.name, ())] for k in kernels]
    named = [bool(kernel.nodes) for kernel in kernels]
    return [
        () if named[i] else _nearest(i, before, named) or _nearest(i, after, named)
        for i in range(len(kernels))
    ]


def _nearest(start: int, edges: Sequence[Sequence[int]], named: Sequence[bool]) -> tuple[int, ...]:
    found: dict[int, None] = {}
    stack, seen = list(edges[start]), {start}
    while stack:
        index = stack.pop()
        if index in seen:
            continue
        seen.add(index)
        if named[index]:
            found[index] = None
        else:
            stack.extend(edges[index])
    return tuple(sorted(found))
