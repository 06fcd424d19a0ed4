"""Where pairs go: one rule of the contract per test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from building import Net
from quantizing import placed, planned, scales

from fusewright.plan.decide import Rules
from fusewright.quantize.placement import place


def _stem(net: Net, channels: int = 8) -> str:
    return net.op("Relu", net.conv(net.input("x", 2, 4, 8, 8), channels, 4), name="stem")


def test_one_pair_however_many_consumers() -> None:
    net = Net()
    x = _stem(net)
    branches = [net.conv(x, 8, 8) for _ in range(3)]
    placement = placed(net, *branches)
    assert scales(placement) == {"x": "x", x: x}
    (site,) = [s for s in placement.activations if s.tensor == x]
    assert len(site.readers) == 3
    assert placement.observe == {"x": ("x",), x: (x,)}


def test_residual_skip_is_quantized_and_the_convolution_side_is_not() -> None:
    net = Net()
    x = _stem(net)
    inner = net.op("Relu", net.conv(x, 8, 8))
    conv = net.conv(inner, 8, 8)
    y = net.op("Relu", net.op("Add", conv, x))
    head = net.conv(y, 8, 8)
    placement = placed(net, head)
    assert set(scales(placement)) == {"x", x, inner, y}
    (site,) = [s for s in placement.activations if s.tensor == x]
    add = next(n.name for n in net.nodes if n.op_type == "Add")
    assert (add, 1) in site.readers
    assert conv not in scales(placement)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_skip_may_be_either_operand(swapped: bool) -> None:
    net = Net()
    x = _stem(net)
    conv = net.conv(x, 8, 8)
    y = net.op("Relu", net.op("Add", *((x, conv) if swapped else (conv, x))))
    placement = placed(net, net.conv(y, 8, 8))
    (site,) = [s for s in placement.activations if s.tensor == x]
    add = next(n.name for n in net.nodes if n.op_type == "Add")
    assert (add, 0 if swapped else 1) in site.readers
    assert (add, 1 if swapped else 0) not in site.readers


def test_two_convolutions_into_one_add() -> None:
    """One owns the Add and takes the other's result as its quantized skip."""
    net = Net()
    x = _stem(net)
    long = net.conv(net.op("Relu", net.conv(x, 8, 8)), 8, 8)
    short = net.conv(x, 8, 8, 1)
    placement = placed(net, net.op("Relu", net.op("Add", long, short)))
    assert short in scales(placement)
    assert long not in scales(placement)


def test_concat_shares_one_scale() -> None:
    net = Net()
    x = _stem(net)
    one, other = (net.op("Relu", net.conv(x, 8, 8)) for _ in range(2))
    whole = net.op("Concat", one, other, axis=1)
    placement = placed(net, net.conv(whole, 8, 16))
    found = scales(placement)
    assert whole not in found
    assert found[one] == found[other]
    # What the convolution reads decides the scale, which is the whole.
    assert placement.observe[found[one]] == (whole,)


def test_one_tensor_several_times_in_one_concat() -> None:
    """A grey image that is stacked to three channels."""
    net = Net()
    x = net.op("Transpose", net.input("x", 1, 8, 8, 1), perm=[0, 3, 1, 2])
    placement = placed(net, net.conv(net.op("Concat", x, x, x, axis=1, name="stack"), 8, 3))
    (site,) = placement.activations
    assert site.tensor == "x"
    assert placement.observe == {site.scale: ("stack_y",)}


def test_concat_of_a_concat_shares_one_scale() -> None:
    net = Net()
    x = _stem(net)
    one, two, three = (net.op("Relu", net.conv(x, 8, 8)) for _ in range(3))
    inner = net.op("Concat", one, two, axis=1)
    outer = net.op("Concat", inner, three, axis=1)
    placement = placed(net, net.conv(outer, 8, 24))
    found = scales(placement)
    assert {inner, outer}.isdisjoint(found)
    assert len({found[t] for t in (one, two, three)}) == 1
    assert placement.observe[found[one]] == (outer,)


def test_two_concats_that_meet_in_one_tensor_share_a_scale() -> None:
    net = Net()
    x = _stem(net)
    one, two, three = (net.op("Relu", net.conv(x, 8, 8)) for _ in range(3))
    left = net.op("Concat", one, two, axis=1)
    right = net.op("Concat", two, three, axis=1)
    placement = placed(net, net.conv(left, 8, 16), net.conv(right, 8, 16))
    found = scales(placement)
    assert len({found[t] for t in (one, two, three)}) == 1
    assert placement.observe[found[one]] == tuple(sorted((left, right)))


def test_concat_with_a_stored_tensor_keeps_the_pair_behind_it() -> None:
    net = Net()
    x = _stem(net)
    whole = net.op("Concat", x, net.draw(2, 8, 8, 8), axis=1)
    assert whole in scales(placed(net, net.conv(whole, 8, 16)))


def test_concat_read_in_float_too_keeps_the_pair_behind_it() -> None:
    net = Net()
    x = _stem(net)
    other = net.op("Relu", net.conv(x, 8, 8))
    whole = net.op("Concat", x, other, axis=1)
    placement = placed(net, net.conv(whole, 8, 16), net.op("Exp", whole))
    assert set(scales(placement)) == {"x", x, whole}


def test_the_same_tensor_twice_in_a_concat() -> None:
    net = Net()
    x = _stem(net)
    placement = placed(net, net.conv(net.op("Concat", x, x, axis=1), 8, 16))
    (site,) = [s for s in placement.activations if s.tensor == x]
    assert [index for _, index in site.readers] == [0, 1]


_MOVERS: dict[str, Callable[[Net, str], tuple[str, int]]] = {
    "MaxPool": lambda n, x: (n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 8),
    "Transpose": lambda n, x: (n.op("Transpose", x, perm=[0, 1, 3, 2]), 8),
    "Reshape": lambda n, x: (n.op("Reshape", x, [2, 4, 16, 8]), 4),
    "Slice": lambda n, x: (n.op("Slice", x, [0], [4], [1]), 4),
    "Pad": lambda n, x: (n.op("Pad", x, [0, 0, 1, 1, 0, 2, 0, 0]), 10),
    "Reflect": lambda n, x: (n.op("Pad", x, [0, 0, 1, 1, 0, 0, 0, 0], mode="reflect"), 8),
    "DepthToSpace": lambda n, x: (n.op("DepthToSpace", x, blocksize=2), 2),
    "SpaceToDepth": lambda n, x: (n.op("SpaceToDepth", x, blocksize=2), 32),
    "Squeeze": lambda n, x: (
        n.op("Squeeze", n.op("Unsqueeze", x, [0]), [0]),
        8,
    ),
}


@pytest.mark.parametrize("name", _MOVERS)
def test_a_pair_moves_through_what_only_moves_elements(name: str) -> None:
    net = Net()
    x = _stem(net)
    moved, channels = _MOVERS[name](net, net.op("Sigmoid", x))
    placement = placed(net, net.op("Relu", net.conv(moved, 8, channels)))
    source = next(n for n in net.nodes if n.op_type == "Sigmoid").output[0]
    assert set(scales(placement)) == {"x", source}
    # It is calibrated on what the convolution reads.
    assert placement.observe[scales(placement)[source]] == (moved,)


def test_a_pair_moves_through_split_when_all_parts_are_read_quantized() -> None:
    net = Net()
    x = _stem(net)
    left, right = net.op("Split", x, [4, 4], axis=1, outputs=2)
    both = placed(net, net.conv(left, 8, 4), net.conv(right, 8, 4))
    assert set(scales(both)) == {"x", x}
    assert both.observe[scales(both)[x]] == tuple(sorted((left, right)))


def test_a_pair_stays_behind_split_where_one_part_is_read_in_float() -> None:
    net = Net()
    x = _stem(net)
    left, right = net.op("Split", x, [4, 4], axis=1, outputs=2)
    placement = placed(net, net.conv(left, 8, 4), net.op("Exp", right))
    assert set(scales(placement)) == {"x", left}


_FIXED: dict[str, Callable[[Net, str], tuple[str, int]]] = {
    "AveragePool": lambda n, x: (n.op("AveragePool", x, kernel_shape=[2, 2]), 8),
    "GlobalAveragePool": lambda n, x: (n.op("GlobalAveragePool", x), 8),
    "Resize": lambda n, x: (
        n.op("Resize", x, None, np.float32([1, 1, 2, 2]), mode="nearest"),
        8,
    ),
    "Pad with ones": lambda n, x: (n.op("Pad", x, [0, 0, 1, 1, 0, 0, 0, 0], 1.0), 8),
    "Softmax": lambda n, x: (n.op("Softmax", x, axis=1), 8),
    "LpPool": lambda n, x: (n.op("LpPool", x, kernel_shape=[2, 2]), 8),
    "Tanh": lambda n, x: (n.op("Tanh", x), 8),
}


@pytest.mark.parametrize("name", _FIXED)
def test_a_pair_never_moves_through_what_computes(name: str) -> None:
    net = Net()
    x = _stem(net)
    made, channels = _FIXED[name](net, x)
    placement = placed(net, net.op("Relu", net.conv(made, 8, channels)))
    assert set(scales(placement)) == {"x", made}


def test_a_pair_stays_where_another_consumer_reads_float() -> None:
    net = Net()
    x = net.op("Sigmoid", _stem(net))
    pooled = net.op("MaxPool", x, kernel_shape=[2, 2])
    placement = placed(net, net.conv(pooled, 8, 8), net.op("Exp", pooled))
    assert set(scales(placement)) == {"x", pooled}


def test_a_pair_stays_behind_what_the_network_puts_out() -> None:
    net = Net()
    x = net.op("Sigmoid", _stem(net))
    pooled = net.op("MaxPool", x, kernel_shape=[2, 2])
    placement = placed(net, net.conv(pooled, 8, 8), pooled)
    assert set(scales(placement)) == {"x", pooled}


def test_a_float_reader_above_does_not_hold_the_pair_back() -> None:
    """The pair sits on the edge, not on the tensor: Exp reads float, MaxPool INT8."""
    net = Net()
    x = net.op("Sigmoid", _stem(net))
    pooled = net.op("MaxPool", x, kernel_shape=[2, 2])
    placement = placed(net, net.conv(pooled, 8, 8), net.op("Exp", x))
    (site,) = [s for s in placement.activations if s.tensor == x]
    assert len(site.readers) == 1


def test_nothing_on_shape_arithmetic() -> None:
    """A Reshape whose shape is computed from the map that is quantized."""
    net = Net()
    x = _stem(net)
    size = net.op("Gather", net.op("Shape", x), np.int64(0), axis=0)
    shape = net.op("Concat", net.op("Unsqueeze", size, [0]), [8, 64], axis=0)
    flat = net.op("Reshape", x, shape)
    y = net.op("MatMul", flat, net.draw(64, 16))
    placement = placed(net, y)
    assert set(scales(placement)) == {"x", x}
    (site,) = [s for s in placement.activations if s.tensor == x]
    assert [(name.split("_")[0], index) for name, index in site.readers] == [("Reshape", 0)]


def test_outputs_of_the_network_stay_float() -> None:
    net = Net()
    x = _stem(net)
    y = net.op("Relu", net.conv(x, 8, 8))
    z = net.conv(y, 8, 8)
    placement = placed(net, y, z)
    assert z not in scales(placement)
    (site,) = [s for s in placement.activations if s.tensor == y]
    # The pair is on the convolution's edge; the output itself is what the Relu wrote.
    assert [index for _, index in site.readers] == [0]


def test_a_graph_input_may_carry_a_pair() -> None:
    net = Net()
    placement = placed(net, net.conv(net.input("x", 1, 4, 8, 8), 8, 4))
    assert scales(placement) == {"x": "x"}


def _act_add(quantized_reader: bool) -> tuple[Net, str, str, str]:
    """act(conv) + skip, the residual that does not fuse with the convolution (RLFN)."""
    net = Net()
    x = _stem(net)
    conv = net.conv(x, 8, 8)
    y = net.op("Add", net.op("LeakyRelu", conv, alpha=0.1), x)
    out = net.conv(y, 8, 8) if quantized_reader else net.op("Exp", y)
    return net, x, conv, out


def test_act_add_has_pairs_on_both_sides() -> None:
    net, x, conv, out = _act_add(quantized_reader=True)
    plan = planned(net, out)
    assert [g.kind for g in plan.groups] == ["ConvBNAct", "ConvBN", "ActAdd", "ConvBN"]
    assert all(g.decision == "int8" for g in plan.groups)
    (act_add,) = [g for g in plan.groups if g.kind == "ActAdd"]
    assert set(scales(place(plan))) == {"x", x, conv, act_add.outputs[0]}


def test_act_add_has_pairs_on_neither_side() -> None:
    net, x, conv, out = _act_add(quantized_reader=False)
    plan = planned(net, out)
    (act_add,) = [g for g in plan.groups if g.kind == "ActAdd"]
    assert act_add.decision == "float"
    assert "both sides or neither" in act_add.reason
    placement = place(plan)
    assert conv not in scales(placement)
    (site,) = [s for s in placement.activations if s.tensor == x]
    assert len(site.readers) == 1  # the convolution reads INT8, the Add float


def test_switching_the_reader_off_takes_the_act_adds_pairs() -> None:
    net, _, conv, out = _act_add(quantized_reader=True)
    name = next(n.name for n in net.nodes if n.output[0] == out)
    plan = planned(net, out, rules=Rules(exclude=(name,)))
    assert [g.decision for g in plan.groups] == ["int8", "int8", "float", "float"]
    assert conv not in scales(place(plan))


def test_grouped_convolution_gets_nothing_at_all() -> None:
    net = Net()
    x = _stem(net)
    deep = net.op("Relu", net.conv(x, 8, 8, group=8), name="depthwise")
    y = net.conv(deep, 8, 8, 1)
    placement = placed(net, y)
    assert set(scales(placement)) == {"x", deep}
    assert len(placement.weights) == 2


def test_who_asks_for_the_shape_alone_holds_no_pair() -> None:
    """onnxslim reads the batch off one of the results of the Split into q, k and v."""
    net = Net()
    x = _stem(net)
    parts = net.op("Split", x, [4, 4], outputs=2, axis=1)
    branches = [net.conv(part, 4, 4, 1) for part in parts]
    placement = placed(net, *branches, net.op("Shape", parts[1]))
    assert set(scales(placement)) == {"x", x}


@pytest.mark.parametrize(("group", "quantizes"), [(2, True), (4, False), (8, False)])
def test_grouped_convolution_by_channels_per_group(group: int, quantizes: bool) -> None:
    net = Net()
    x = net.input("x", 1, 8, 8, 8)
    assert bool(placed(net, net.conv(x, 8, 8, group=group)).weights) is quantizes


def test_weight_axes() -> None:
    net = Net()
    x = _stem(net)
    up = net.op("ConvTranspose", x, net.draw(8, 6, 2, 2), strides=[2, 2])
    y = net.op("MatMul", up, net.draw(16, 10))
    axes = {w.readers[0][0].split("_")[0]: w.axis for w in placed(net, y).weights}
    assert axes == {"Conv": 0, "ConvTranspose": None, "MatMul": 1}


def test_a_weight_read_by_two_convolutions_has_one_pair() -> None:
    net = Net()
    x, w = net.input("x", 1, 8, 8, 8), net.draw(8, 8, 3, 3)
    first = net.op("Conv", x, w, pads=[1] * 4)
    placement = placed(net, net.op("Conv", net.op("Relu", first), w, pads=[1] * 4))
    (weight,) = placement.weights
    assert len(weight.readers) == 2


def test_an_excluded_group_is_left_float() -> None:
    net = Net()
    x = _stem(net)
    y = net.op("Relu", net.conv(x, 8, 8), name="second")
    placement = placed(net, net.conv(y, 8, 8), rules=Rules(exclude=("second",)))
    assert set(scales(placement)) == {"x", y}


def test_lines_are_one_per_site_and_the_same_each_time() -> None:
    def lines() -> list[str]:
        net = Net()
        x = _stem(net)
        return placed(net, net.conv(net.op("Concat", x, x, axis=1), 8, 16)).lines()

    assert lines() == lines()
    assert len(lines()) == 4
