"""GroupNorm: PyTorch's chain, the operator written out, and Keras' LayerNorm beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from building import Net, as_model, assert_equal, ops
from norms import EPSILON, mean, square
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule

GROUPS, CHANNELS = 2, 6
GN = "GroupNormalization"
CHAIN = "Reshape InstanceNormalization Reshape"


def _image(net: Net, *shape: int | str) -> str:
    return net.input("x", *(shape or ("n", CHANNELS, 4, 5)))


def _affine(net: Net, y: str, *shape: int, which: str = "Mul Add") -> str:
    for op in which.split():
        y = net.op(op, net.positive(*(shape or (CHANNELS, 1, 1)), name=op), y)
    return y


def _torch(
    shape: tuple[int | str, ...] = ("n", CHANNELS, 4, 5),
    rows: Sequence[int] = (0, GROUPS, -1),
    back: Sequence[int] | str = "Shape",
    *,
    ones: bool = True,
    parameters: tuple[int, ...] = (),
    which: str = "Mul Add",
):
    """Reshape, InstanceNormalization, Reshape, Mul, Add."""

    def build(net: Net) -> str:
        x = _image(net, *shape)
        groups = rows[1]
        scale, bias = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        if not ones:
            scale, bias = scale * 1.5, bias + 0.25
        y = net.op("Reshape", x, list(rows))
        y = net.op("InstanceNormalization", y, scale, bias, epsilon=EPSILON)
        target = net.op("Shape", x) if back == "Shape" else list(back)
        return _affine(net, net.op("Reshape", y, target), *parameters, which=which)

    return build


def _moments(affine: str = "channels", second: str = "squares", axes: tuple[int, ...] = (-1,)):
    """What onnxruntime makes of the operator: moments of rows, an affine of groups or channels."""

    def build(net: Net) -> str:
        x = _image(net)
        y = net.op("Reshape", net.op("Reshape", x, [0, GROUPS, 3, 4, 5]), [0, 0, -1])
        average = mean(net, y, axes)
        centred = net.op("Sub", y, average)
        if second == "squares":
            variance = net.op("Sub", mean(net, square(net, y), axes), square(net, average))
        else:
            variance = mean(net, square(net, centred), axes)
        y = net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, EPSILON)))
        if affine == "channels":
            y = net.op("Reshape", net.op("Reshape", y, [0, CHANNELS, 4, 5]), [0, 0, -1])
        count = CHANNELS if affine == "channels" else GROUPS
        y = _affine(net, y, 1, count, 1) if affine != "none" else y
        return net.op("Reshape", y, [0, CHANNELS, 4, 5])

    return build


OPERATOR = {
    "PyTorch": _torch(),
    "shape stored": _torch(back=(0, CHANNELS, 4, 5)),
    "static": _torch((2, CHANNELS, 4, 5), (2, GROUPS, 60), (2, CHANNELS, 4, 5)),
    "dynamic map": _torch(("n", CHANNELS, "h", "w")),
    "sequence": _torch(("n", CHANNELS, 7), parameters=(CHANNELS, 1)),
    "one group": _torch(rows=(0, 1, -1)),
    "a group per channel": _torch(rows=(0, CHANNELS, -1)),
    "parameters of full rank": _torch(parameters=(1, CHANNELS, 1, 1)),
    "scalar parameters": _torch(parameters=(1,)),
    "without bias": _torch(which="Mul"),
    "without scale": _torch(which="Add"),
    "without parameters": _torch(which=""),
    "groups scaled inside": _torch(ones=False),
    "moments, scaled by channel": _moments(),
    "moments, scaled by group": _moments("groups"),
    "moments, not scaled": _moments("none"),
    "centred moments": _moments("groups", second="centred"),
}
_FROM_MOMENTS = ("moments, scaled by group", "moments, not scaled", "centred moments")


def _leaking(net: Net) -> tuple[str, str]:
    y = net.op("Reshape", _image(net), [0, GROUPS, -1])
    ones, zeros = np.ones(GROUPS, np.float32), np.zeros(GROUPS, np.float32)
    y = net.op("InstanceNormalization", y, ones, zeros, name="norm")
    return net.op("Reshape", y, [0, CHANNELS, 4, 5]), net.op("Neg", y)


LEFT_ALONE = {
    "another shape behind": Row(
        _torch(back=(0, CHANNELS, 20), which=""), "another shape behind than in front", 21
    ),
    "channels and map exchanged": Row(
        _torch(back=(0, 4, CHANNELS, 5), which=""), "another shape behind than in front", 21
    ),
    "groups across the batch": Row(
        _torch((2, CHANNELS, 4, 5), (1, GROUPS, -1), (2, CHANNELS, 4, 5), which=""),
        "a reshape of the batch",
        21,
    ),
    "groups that part a channel": Row(
        _torch((2, CHANNELS, 4, 5), (2, 4, -1), (2, CHANNELS, 4, 5), which=""),
        "a reshape to other than [batch, groups, rest]",
        21,
    ),
    "channels that are not known": Row(
        lambda n: n.op(
            "Reshape",
            n.op(
                "InstanceNormalization",
                n.op("Reshape", _image(n, "n", "c", 4, 5), [0, 2, -1]),
                np.ones(2, np.float32),
                np.zeros(2, np.float32),
            ),
            n.op("Shape", "x"),
        ),
        "channels that are not known",
        21,
    ),
    "moments over groups too": Row(
        _moments("none", axes=(1, 2)), "a mean over other axes than the last one", 21
    ),
    "read elsewhere": Row(_leaking, "'norm_y' used elsewhere", 21),
    "opset 20": Row(_torch(), "needs opset 21; the chain stays", 20),
}


@pytest.mark.parametrize("build", OPERATOR.values(), ids=list(OPERATOR))
def test_operator(build) -> None:
    assert_rewritten(Row(build, GN, 21))


@pytest.mark.parametrize("name", [n for n in OPERATOR if "moments" not in n])
def test_chain_stays_before_opset_21(name: str) -> None:
    row = Row(OPERATOR[name], "needs opset 21; the chain stays", 18)
    assert_left_alone("GroupNormChain", row)


@pytest.mark.parametrize("name", _FROM_MOMENTS)
def test_moments_become_the_chain_before_opset_21(name: str) -> None:
    affine = "" if "not scaled" in name else " Mul Add"
    assert_rewritten(Row(OPERATOR[name], CHAIN + affine, 18))


@pytest.mark.parametrize("which", ["Mul", "Add", ""])
def test_parameters_that_are_not_there_are_not_written(which: str) -> None:
    build = _torch(back=(0, CHANNELS, 4, 5), which=which)
    assert_rewritten(Row(build, f"{CHAIN} {which}".strip(), 18))


@pytest.mark.parametrize("position", ["scale of groups and a column", "image"])
def test_what_is_not_per_channel_stays_outside(position: str) -> None:
    shape = (5,) if position == "image" else (CHANNELS, 4, 1)
    assert_rewritten(Row(_torch(parameters=shape), f"{GN} Mul Add", 21))


@pytest.mark.parametrize("shape", [("n", CHANNELS, 4, 5), ("n", CHANNELS, "h", "w"), (2, 6, 7)])
def test_operator_survives_cleaning(shape: tuple[int | str, ...]) -> None:
    """onnxruntime has no kernel for it and writes it out."""
    net = Net(21)
    x = _image(net, *shape)
    for _ in range(2):
        x = net.op(GN, x, net.positive(CHANNELS), net.draw(CHANNELS), num_groups=GROUPS)
    proto = net.proto(x)
    model = as_model(proto, clean=True)
    assert ops(model) == f"{GN} {GN}"
    assert_equal(proto, model)


def test_operator_of_opset_18_becomes_the_chain() -> None:
    net = Net(18)
    proto = net.proto(
        net.op(GN, _image(net), net.positive(GROUPS), net.draw(GROUPS), num_groups=GROUPS)
    )
    model = as_model(proto, clean=True)
    assert ops(model) == f"{CHAIN} Mul Add"
    assert_equal(proto, model)


def test_one_that_stays_written_out_does_not_clash_with_one_that_came_back() -> None:
    net = Net(21)
    parameters = net.positive(CHANNELS), net.draw(CHANNELS)
    first = net.op(GN, _image(net), *parameters, num_groups=GROUPS)
    computed = net.input("s", "c"), net.input("t", "c")
    second = net.op(GN, net.input("z", "n", "c", 4, 5), *computed, num_groups=GROUPS)
    proto = net.proto(first, second)
    model = as_model(proto, clean=True)
    assert ops(model).split().count(GN) == 1
    assert_equal(proto, model)


@pytest.mark.parametrize(("rule", "row"), by_rule({"GroupNormChain": LEFT_ALONE}))
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)
