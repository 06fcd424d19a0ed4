"""The cut has the fewest Casts: against all assignments of small random graphs."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from building import Net, as_model

from fusewright.precision.cut import CAST, NODE, float_nodes
from fusewright.precision.flow import Flow
from fusewright.precision.kinds import KINDS
from fusewright.precision.ops import is_light


def _net(seed: int) -> tuple[gs.Graph, dict[str, str]]:
    """A few light, heavy and forced nodes that read each other at random; two are outputs."""
    random = np.random.default_rng(seed)
    net = Net()
    tensors = [net.input("x", 4, 4)]
    forced: dict[str, str] = {}
    for i in range(int(random.integers(5, 11))):
        first, second = (tensors[j] for j in random.integers(0, len(tensors), 2))
        op = str(random.choice(["Add", "Mul", "Relu", "Transpose", "MatMul", "Max"]))
        operands = (first,) if op in ("Relu", "Transpose") else (first, second)
        tensors.append(net.op(op, *operands, name=f"n{i}"))
        if random.random() < 0.25:
            forced[f"n{i}"] = "forced"
    outputs = {tensors[-1], tensors[int(random.integers(1, len(tensors)))]}
    return as_model(net.proto(*sorted(outputs))).graph, forced


def _cost(graph: gs.Graph, kept: set[str], forced: dict[str, str], io_half: bool) -> int:
    """Casts, and the float32 nodes that could be half."""
    outputs = {id(t) for t in graph.outputs}
    cost = NODE * len(kept - set(forced))
    for tensor in (*graph.inputs, *(t for n in graph.nodes for t in n.outputs)):
        maker = tensor.inputs[0] if tensor.inputs else None
        written = not io_half if maker is None else maker.name in kept
        read = {node.name in kept for node in tensor.outputs}
        read |= {not io_half} if id(tensor) in outputs else set()
        cost += CAST * bool(read - {written})
    return cost


@pytest.mark.parametrize("seed", range(40))
def test_no_assignment_is_cheaper(seed: int) -> None:
    graph, forced = _net(seed)
    io_half = seed % 4 == 0
    flow = Flow(graph, KINDS["fp16"])
    found = set(float_nodes(flow, forced, io_half))
    assert found >= set(forced)
    free = [n.name for n in graph.nodes if is_light(n) and n.name not in forced]
    assert found - set(forced) <= set(free), "heavy nodes stay half"
    costs = [
        _cost(
            graph,
            {n for n, keep in zip(free, bits, strict=True) if keep} | set(forced),
            forced,
            io_half,
        )
        for bits in product((False, True), repeat=len(free))
    ]
    assert _cost(graph, found, forced, io_half) == min(costs), f"seed {seed}"


def test_half_is_preferred_where_it_costs_the_same() -> None:
    net = Net()
    y = net.op(
        "MatMul",
        net.op("Relu", net.op("MatMul", net.input("x", 4, 4), net.draw(4, 4))),
        net.draw(4, 4),
    )
    graph = as_model(net.proto(y)).graph
    assert float_nodes(Flow(graph, KINDS["fp16"]), {}, False) == set()
