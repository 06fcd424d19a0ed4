"""What half's rounding makes of ill-conditioned functions, followed back to what has to be exact.

A function says how wrong its argument may be. From there to the inputs, each operator says how much
of an error in its operands is seen in its result, so that the tensors that may not be rounded are
found wherever they lie: behind a MatMul, an Einsum, a sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import is_constant, peek, producer, toposort
from fusewright.precision.flow import Flow
from fusewright.precision.gains import gains, is_heavy
from fusewright.precision.growth import Growth
from fusewright.precision.sensitive import Demand, Sensitive
from fusewright.precision.types import DEQUANTIZE
from fusewright.precision.wholes import is_whole


def magnified(flow: Flow, sizes: Mapping[str, int]) -> dict[str, str]:
    """Names of the nodes that stay float32 because of what a function makes of their rounding.

    Args:
        flow: with the ranges.
        sizes: the declared maximum of symbolic dimensions.

    Returns:
        Each name with the reason.
    """
    growth = Growth(flow, sizes)
    walk = _Walk(flow, growth, Sensitive(flow, growth))
    for node in reversed(toposort(flow.graph.nodes)):
        walk.visit(node)
    return walk.found


class _Walk:
    def __init__(self, flow: Flow, growth: Growth, sensitive: Sensitive) -> None:
        self._flow, self._growth, self._sensitive = flow, growth, sensitive
        self._asked: dict[int, Demand] = {}
        self.found: dict[str, str] = {}

    def visit(self, node: gs.Node) -> None:
        """All that read its results have been visited."""
        asked = self._sensitive.demand(node)
        if asked is not None:
            slots, demand = asked
            if any([self._ask(node.inputs[slot], demand) for slot in slots]):  # noqa: C419 - all
                self._keep(node, demand.why)
        results = [t for t in node.outputs if id(t) in self._asked]
        for tensor in results:
            demand = self._asked[id(tensor)]
            exact = self._must_be_exact(tensor, demand)
            if exact:
                self._keep(node, demand.what)
            # What a heavy operator may round is about as wrong as its operands make it.
            if exact or not is_heavy(self._flow, node):
                self._pass_on(node, demand)

    def _pass_on(self, node: gs.Node, demand: Demand) -> None:
        for gain in gains(self._flow, self._growth, node, demand.size):
            tensor = node.inputs[gain.slot]
            own = self._growth.size(tensor)
            if own is None:
                continue
            size = own if gain.size is None or math.isinf(own) else min(own, gain.size)
            asked = demand.scaled(gain.factor, size)
            if gain.bounded and not self._must_be_exact(tensor, asked):
                continue
            if self._ask(tensor, asked):
                self._keep(node, demand.what)

    def _ask(self, tensor: gs.Tensor, demand: Demand) -> bool:
        """Adds to what is asked of a tensor; whether half is too coarse for it."""
        before = self._asked.get(id(tensor))
        self._asked[id(tensor)] = demand if before is None else before.joined(demand)
        return self._must_be_exact(tensor, demand)

    def _must_be_exact(self, tensor: gs.Tensor, demand: Demand) -> bool:
        maker = producer(tensor)
        if maker is not None and maker.op == DEQUANTIZE:
            return False  # what its pair rounds is more
        heavy = maker is not None and is_heavy(self._flow, maker)
        return self._error(tensor, demand.size) > (demand.heavy if heavy else demand.light)

    def _error(self, tensor: gs.Tensor, size: float) -> float:
        kind = self._flow.kind
        if is_constant(tensor):
            values = peek(tensor).reshape(-1)
            values = values[np.abs(values) <= min(size, kind.maximum)]
            return float(np.abs(values - kind.round(values).astype(np.float32)).max(initial=0.0))
        if size <= kind.integers and is_whole(self._flow, tensor):
            return 0.0
        return kind.unit * size

    def _keep(self, node: gs.Node, why: str) -> None:
        if self._flow.slots(node).follows:
            self.found.setdefault(node.name, why)
