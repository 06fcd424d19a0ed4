"""Who takes a node that several groups could have."""

from __future__ import annotations

import pytest
from building import Net
from recognising import Build, recognised


def _groups(build: Build) -> dict[str, str]:
    """Kind by name of the convolution."""
    plan, _ = recognised(build)
    return {group.name: group.kind for group in plan.groups}


def _two_branches(net: Net, swap: bool = False, act: bool = True, reverse: bool = False) -> str:
    """A block with a convolution on its shortcut; file order may put the shortcut first."""
    x = net.input("x", "n", 4, 8, 8)

    def shortcut() -> str:
        return net.conv(x, 4, 4, kernel=1, name="short")

    def branch() -> str:
        return net.conv(net.op("Relu", net.conv(x, 4, 4, name="first")), 4, 4, name="second")

    if reverse:
        b, a = shortcut(), branch()
    else:
        a, b = branch(), shortcut()
    y = net.op("Add", b, a, name="add") if swap else net.op("Add", a, b, name="add")
    return net.op("Relu", y) if act else net.op("Neg", y)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("act", [False, True])
@pytest.mark.parametrize("swap", [False, True])
def test_longer_branch_takes_the_add(swap: bool, act: bool, reverse: bool) -> None:
    assert _groups(lambda n: _two_branches(n, swap, act, reverse)) == {
        "first": "ConvBNAct",
        "second": "ConvBNAddAct" if act else "ConvBNAdd",
        "short": "ConvBN",
    }


@pytest.mark.parametrize("swap", [False, True])
def test_on_a_tie_the_first_in_order_takes_the_add(swap: bool) -> None:
    def build(net: Net) -> str:
        x = net.input("x", "n", 4, 8, 8)
        a, b = net.conv(x, 4, 4, name="one"), net.conv(x, 4, 4, name="two")
        return net.op("Relu", net.op("Add", b, a) if swap else net.op("Add", a, b))

    assert _groups(build) == {"one": "ConvBNAddAct", "two": "ConvBN"}


def test_the_longer_branch_leaves_it_where_it_is_read_elsewhere() -> None:
    def build(net: Net) -> tuple[str, str]:
        return _two_branches(net), net.op("Neg", "second_y")

    assert _groups(build) == {"first": "ConvBNAct", "second": "ConvBN", "short": "ConvBNAddAct"}


def test_act_whose_only_reader_is_the_residual_leaves_its_conv() -> None:
    def build(net: Net) -> str:
        x = net.op("Relu", net.conv(net.input("x", "n", 4, 8, 8), 4, 4, name="stem"))
        return net.conv(net.op("Add", net.op("Relu", net.conv(x, 4, 4, name="c")), x), 4, 4)

    plan, _ = recognised(build)
    assert [g.kind for g in plan.groups] == ["ConvBNAct", "ConvBN", "ActAdd", "ConvBN"]


def test_of_two_acts_the_longer_branch_is_in_the_group() -> None:
    def build(net: Net) -> str:
        x = net.input("x", "n", 4, 8, 8)
        short = net.op("Relu", net.conv(x, 4, 4, name="short"), name="short_act")
        inner = net.op("Relu", net.conv(x, 4, 4, name="first"))
        return net.op("Add", short, net.op("Relu", net.conv(inner, 4, 4), name="long_act"))

    plan, _ = recognised(build)
    (group,) = [g for g in plan.groups if g.kind == "ActAdd"]
    assert "long_act" in group.members
    assert "short_act" not in group.members
    assert plan.counts() == {"ActAdd": 1, "ConvBNAct": 2, "ConvBN": 1}


def test_chain_of_adds_is_shared_out() -> None:
    """Add(Add(conv, conv), conv): one Add each, and one convolution left."""

    def build(net: Net) -> str:
        x = net.input("x", "n", 4, 8, 8)
        inner = net.op("Add", net.conv(x, 4, 4, name="a"), net.conv(x, 4, 4, name="b"))
        return net.op("Add", inner, net.conv(x, 4, 4, name="c"))

    assert _groups(build) == {"a": "ConvBNAdd", "b": "ConvBN", "c": "ConvBNAdd"}


def test_preactivation_block() -> None:
    """BN, Relu, conv, and the sum goes on as it is: its BN belongs to no group."""

    def build(net: Net) -> str:
        x = net.conv(net.input("x", "n", 4, 8, 8), 4, 4, name="stem")
        for i in range(2):
            y = net.op("Relu", net.batchnorm(x, 4))
            x = net.op("Add", net.conv(y, 4, 4, name=f"c{i}"), x)
        return x

    assert _groups(build) == {"stem": "ConvBN", "c0": "ConvBNAdd", "c1": "ConvBNAdd"}


def test_one_input_of_many_groups() -> None:
    def build(net: Net) -> str:
        x = net.input("x", "n", 4, 8, 8)
        parts = [net.op("Relu", net.conv(x, 4, 4, name=f"c{i}")) for i in range(3)]
        return net.op("Concat", *parts, axis=1)

    assert _groups(build) == dict.fromkeys(("c0", "c1", "c2"), "ConvBNAct")


def test_names_stay_unique_where_one_node_of_the_file_is_in_two_groups() -> None:
    """MatMul and Add of a Gemm whose sum is read twice are one node of the file."""

    def build(net: Net) -> tuple[str, str]:
        x = net.input("x", "n", 4)
        return net.op("Gemm", net.op("Gemm", x, net.draw(4, 4)), net.draw(4, 4)), x

    plan, _ = recognised(build)
    names = [group.name for group in plan.groups]
    assert len(names) == len(set(names)) == 2
