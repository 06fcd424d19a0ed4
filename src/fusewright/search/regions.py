"""Where in a model a choice does what it does: the groups that it changes, with their neighbours.

A kernel joins a layer with what stands beside it. So what a choice does to a plan is done within a
few groups around those that it changes, and around each of repeated blocks alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from fusewright.graph.layout import moved_inputs
from fusewright.graph.walk import is_constant, producer
from fusewright.plan.plan import Plan

# Groups on each side that a part holds beside the changed ones; layout between them is not counted.
# Of 101 choices on efficientnet_b0, convnext_tiny and swin_t, the parts say of 100 whether they
# gain as the whole does, and of 93 by how many kernels; the rest is a few kernels off.
_REACH = 2


class Regions:
    """The groups of a plan, and the nodes outside groups, as neighbours."""

    def __init__(self, plan: Plan) -> None:
        """Looks at the plan's graph, which is float."""
        graph, opset = plan.model.graph, plan.model.opset
        home = {m: f"group {g.name}" for g in plan.groups for m in g.members}
        self._members: dict[str, list[str]] = defaultdict(list)
        self._near: dict[str, set[str]] = defaultdict(set)
        computes: set[str] = set()
        for node in graph.nodes:
            unit = home.setdefault(node.name, f"node {node.name}")
            self._members[unit].append(node.name)
            if not moved_inputs(node, opset):
                computes.add(unit)
        for node in graph.nodes:
            for tensor in node.inputs:
                maker = None if is_constant(tensor) else producer(tensor)
                if maker is not None and home[maker.name] != home[node.name]:
                    self._near[home[maker.name]].add(home[node.name])
                    self._near[home[node.name]].add(home[maker.name])
        self._layout = frozenset(self._members) - computes
        self._order = {name: i for i, name in enumerate(self._members)}

    def around(self, groups: Iterable[str]) -> list[frozenset[str]]:
        """The nodes of each part, by name; changed groups in each other's reach are in one part.

        Args:
            groups: names of the changed groups.
        """
        left = sorted((f"group {name}" for name in groups), key=lambda unit: self._order[unit])
        reach = {unit: self._reach(unit) for unit in left}
        parts = []
        while left:
            part, left = set(reach[left[0]]), left[1:]
            while found := [unit for unit in left if unit in part]:
                part = part.union(*(reach[unit] for unit in found))
                left = [unit for unit in left if unit not in found]
            parts.append(frozenset(name for unit in part for name in self._members[unit]))
        return parts

    def _reach(self, unit: str) -> set[str]:
        found = self._with_layout({unit})
        for _ in range(_REACH):
            beside = {other for one in found for other in self._near[one]}
            found |= self._with_layout(beside - found)
        return found

    def _with_layout(self, units: set[str]) -> set[str]:
        """The units and the layout behind and in front of them, up to what computes."""
        found, waiting = set(units), sorted(units)
        while waiting:
            beside = self._near[waiting.pop()]
            new = sorted(unit for unit in beside if unit in self._layout and unit not in found)
            found.update(new)
            waiting += new
        return found
