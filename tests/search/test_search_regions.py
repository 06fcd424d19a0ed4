"""Which nodes lie around a changed group."""

from __future__ import annotations

from collections.abc import Sequence

from building import Net
from searching import planned

from fusewright.plan.plan import Plan
from fusewright.search.regions import Regions


def _chain(layout: bool = False) -> Plan:
    """Ten Linears with a Tanh each, with or without layout between them."""
    net = Net()
    x = net.input("x", 4, 8)
    for i in range(10):
        x = net.op("Tanh", net.op("MatMul", x, net.draw(8, 8), name=f"fc{i}"))
        if layout:
            x = net.op("Transpose", net.op("Reshape", x, [2, 2, 8]), perm=[1, 0, 2])
            x = net.op("Reshape", x, [4, 8])
    return planned(net, x)


def _linears(parts: Sequence[frozenset[str]]) -> list[list[int]]:
    return [sorted(int(n[2:]) for n in part if n.startswith("fc")) for part in parts]


def test_two_groups_on_each_side() -> None:
    assert _linears(Regions(_chain()).around(["fc4"])) == [[2, 3, 4, 5, 6]]
    assert _linears(Regions(_chain()).around(["fc0"])) == [[0, 1, 2]]


def test_layout_is_no_neighbour() -> None:
    (part,) = Regions(_chain(layout=True)).around(["fc4"])
    assert _linears([part]) == [[2, 3, 4, 5, 6]]
    assert len([name for name in part if not name.startswith("fc")]) > 12, "and it is inside"


def test_groups_apart_are_parts_of_their_own() -> None:
    assert _linears(Regions(_chain()).around(["fc8", "fc1"])) == [[0, 1, 2, 3], [6, 7, 8, 9]]


def test_groups_in_reach_of_each_other_are_one_part() -> None:
    found = Regions(_chain()).around(["fc1", "fc5", "fc3"])
    assert _linears(found) == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_all_nodes_of_a_group_and_those_of_none() -> None:
    net = Net()
    x = net.op("MatMul", net.input("x", 4, 8), net.draw(8, 8), name="fc0")
    x = net.op("MatMul", net.op("Cos", x, name="cos"), net.draw(8, 8), name="fc1")
    plan = planned(net, net.op("Tanh", x, name="tanh"))
    assert Regions(plan).around(["fc1"]) == [frozenset({"fc0", "cos", "fc1", "tanh"})]
