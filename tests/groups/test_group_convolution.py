"""ConvBN, ConvBNAct, ConvBNActMaxPool, ConvBNAdd, ConvBNAddAct, ActAdd, ConvTransposeBNAct."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from recognising import Build, Row, assert_kinds, assert_refused, recognised


def _x(net: Net, channels: int = 4) -> str:
    return net.input("x", "n", channels, 8, 8)


def _silu(net: Net, y: str, swap: bool = False) -> str:
    gate = net.op("Sigmoid", y)
    return net.op("Mul", gate, y) if swap else net.op("Mul", y, gate)


def _gelu(net: Net, y: str, order: int) -> str:
    inner = net.op("Div", y, 2**0.5) if order % 2 else net.op("Mul", y, 0.5**0.5)
    gate = net.op("Add", net.op("Erf", inner), 1.0)
    if order < 2:
        return net.op("Mul", net.op("Mul", y, gate), 0.5)
    if order < 4:
        return net.op("Mul", y, net.op("Mul", 0.5, gate))
    return net.op("Mul", net.op("Mul", 0.5, y), gate)


_SIMPLE = ("Relu", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu", "Selu")
_SIMPLE += ("Celu", "Softplus", "Softsign", "ThresholdedRelu")
ACTIVATIONS: dict[str, Build] = {
    name: (lambda n, name=name: n.op(name, n.conv(_x(n), 6, 4))) for name in _SIMPLE
}
ACTIVATIONS |= {
    "Clip": lambda n: n.op("Clip", n.conv(_x(n), 6, 4), 0.0, 6.0),
    "Clip without minimum": lambda n: n.op("Clip", n.conv(_x(n), 6, 4), None, 6.0),
    "Clip without bounds": lambda n: n.op("Clip", n.conv(_x(n), 6, 4)),
    "PRelu": lambda n: n.op("PRelu", n.conv(_x(n), 6, 4), n.positive(6, 1, 1)),
    "SiLU": lambda n: _silu(n, n.conv(_x(n), 6, 4)),
    "SiLU, operands swapped": lambda n: _silu(n, n.conv(_x(n), 6, 4), swap=True),
    "x·HardSigmoid(x), another slope": lambda n: n.op(
        "Mul", n.op("HardSigmoid", n.conv(_x(n), 6, 4, name="conv")), "conv_y"
    ),
    "x·tanh(softplus(x))": lambda n: n.op(
        "Mul", n.op("Tanh", n.op("Softplus", n.conv(_x(n), 6, 4, name="conv"))), "conv_y"
    ),
    "HardSwish chain": lambda n: n.op(
        "Mul",
        n.conv(_x(n), 6, 4, name="conv"),
        n.op("Div", n.op("Clip", n.op("Add", "conv_y", 3.0), 0.0, 6.0), 6.0),
    ),
}
ACTIVATIONS |= {
    f"GELU with erf, order {order}": (lambda n, order=order: _gelu(n, n.conv(_x(n), 6, 4), order))
    for order in range(6)
}


def _training(net: Net) -> tuple[str, ...]:
    y = net.batchnorm(net.conv(net.input("x", 2, 4, 8, 8), 6, 4), 6, outputs=3, training_mode=1)
    return net.op("Relu", y[0]), y[1]


MATCHES = {
    "conv": Row(lambda n: n.conv(_x(n), 6, 4), "ConvBN"),
    "conv, BN": Row(lambda n: n.batchnorm(n.conv(_x(n), 6, 4), 6), "ConvBN"),
    "conv, BN, Relu": Row(lambda n: n.op("Relu", n.batchnorm(n.conv(_x(n), 6, 4), 6)), "ConvBNAct"),
    "depthwise": Row(lambda n: n.op("Relu", n.conv(_x(n), 4, 4, group=4)), "ConvBNAct"),
    "Conv1D": Row(lambda n: n.op("Relu", n.conv(n.input("x", 1, 4, 8), 6, 4, rank=1)), "ConvBNAct"),
    "MaxPool": Row(
        lambda n: n.op("MaxPool", n.op("Relu", n.conv(_x(n), 6, 4)), kernel_shape=[2, 2]),
        "ConvBNActMaxPool",
    ),
    "MaxPool without act": Row(
        lambda n: n.op("MaxPool", n.conv(_x(n), 6, 4), kernel_shape=[2, 2]), "ConvBN"
    ),
    "AveragePool": Row(
        lambda n: n.op("AveragePool", n.op("Relu", n.conv(_x(n), 6, 4)), kernel_shape=[2, 2]),
        "ConvBNAct",
    ),
    "two acts": Row(lambda n: n.op("Sigmoid", n.op("Relu", n.conv(_x(n), 6, 4))), "ConvBNAct"),
    "act used twice": Row(
        lambda n: (n.op("Relu", n.conv(_x(n), 6, 4), name="r"), n.op("Neg", "r_y")), "ConvBNAct"
    ),
    "two convs share an input": Row(
        lambda n: (n.op("Relu", n.conv(_x(n), 6, 4)), n.conv("x", 6, 4)), "ConvBNAct ConvBN"
    ),
    "residual with act": Row(
        lambda n: n.op("Relu", n.op("Add", n.conv(_x(n), 4, 4), "x")), "ConvBNAddAct"
    ),
    "residual, operands swapped": Row(
        lambda n: n.op("Relu", n.op("Add", "x", n.conv(_x(n), 4, 4))), "ConvBNAddAct"
    ),
    "residual with SiLU": Row(
        lambda n: _silu(n, n.op("Add", "x", n.conv(_x(n), 4, 4))), "ConvBNAddAct"
    ),
    "residual without act": Row(lambda n: n.op("Add", n.conv(_x(n), 4, 4), "x"), "ConvBNAdd"),
    "residual used twice": Row(
        lambda n: (
            n.op("Relu", n.op("Add", n.conv(_x(n), 4, 4), "x", name="a")),
            n.op("Neg", "a_y"),
        ),
        "ConvBNAdd",
    ),
    "residual as Sum": Row(
        lambda n: n.op("Relu", n.op("Sum", "x", n.conv(_x(n), 4, 4))), "ConvBNAddAct"
    ),
    "act, then the residual": Row(
        lambda n: n.op("Add", n.op("Relu", n.conv(_x(n), 4, 4)), "x"), "ConvBN ActAdd"
    ),
    "SiLU, then the residual": Row(
        lambda n: n.op("Add", "x", _silu(n, n.conv(_x(n), 4, 4))), "ConvBN ActAdd"
    ),
    "act, the residual, another act": Row(
        lambda n: n.op("Relu", n.op("Add", n.op("Relu", n.conv(_x(n), 4, 4)), "x")),
        "ConvBN ActAdd",
    ),
    "act beside a BN of no convolution": Row(
        lambda n: n.op("Add", n.op("Relu", n.conv(_x(n), 4, 4)), n.batchnorm(n.op("Exp", "x"), 4)),
        "ConvBN ActAdd",
    ),
    "act beside a conv with a computed weight": Row(
        lambda n: n.op(
            "Add",
            n.op("Relu", n.conv(_x(n), 4, 4)),
            n.op("Conv", "x", n.op("Exp", n.input("w", 4, 4, 1, 1))),
        ),
        "ConvBN ActAdd",
    ),
    "act read twice, then the residual": Row(
        lambda n: (
            n.op("Add", n.op("Relu", n.conv(_x(n), 4, 4), name="r"), "x"),
            n.op("Neg", "r_y"),
        ),
        "ConvBNAct",
    ),
    "ConvTranspose": Row(
        lambda n: n.op("ConvTranspose", _x(n), n.draw(4, 6, 3, 3)), "ConvTransposeBNAct"
    ),
    "ConvTranspose, BN, Relu": Row(
        lambda n: n.op("Relu", n.batchnorm(n.op("ConvTranspose", _x(n), n.draw(4, 6, 3, 3)), 6)),
        "ConvTransposeBNAct",
    ),
    "squeeze and excite": Row(
        lambda n: n.op("Mul", _x(n), _excite(n)),
        "AdaptiveAvgPool ConvBNAct ConvBNAct",
    ),
    "Concat of two": Row(
        lambda n: n.conv(
            n.op("Concat", n.op("Relu", n.conv(_x(n), 6, 4)), n.conv("x", 2, 4), axis=1), 4, 8
        ),
        "ConvBNAct ConvBN ConvBN",
    ),
}


def _excite(net: Net) -> str:
    pooled = net.op("GlobalAveragePool", "x")
    inner = net.op("Relu", net.conv(pooled, 2, 4, kernel=1))
    return net.op("Sigmoid", net.conv(inner, 4, 2, kernel=1))


REFUSED = {
    "computed weight": (
        "ConvBN",
        Row(
            lambda n: n.op("Conv", _x(n), n.op("Exp", n.input("w", 6, 4, 3, 3))),
            "expected a stored tensor",
        ),
    ),
    "computed bias": (
        "ConvBN",
        Row(
            lambda n: n.op("Conv", _x(n), n.draw(6, 4, 3, 3), n.op("Exp", n.input("b", 6))),
            "expected a stored tensor",
        ),
    ),
    "conv used twice": (
        "ConvBNAct",
        Row(
            lambda n: (n.op("Relu", n.conv(_x(n), 6, 4, name="c")), n.op("Neg", "c_y")),
            "used elsewhere",
        ),
    ),
    "conv is an output": (
        "ConvBNAct",
        Row(lambda n: (n.op("Relu", n.conv(_x(n), 6, 4, name="c")), "c_y"), "used elsewhere"),
    ),
    "act is an output, then a pool": (
        "ConvBNActMaxPool",
        Row(
            lambda n: (
                n.op("MaxPool", n.op("Relu", n.conv(_x(n), 6, 4), name="r"), kernel_shape=[2, 2]),
                "r_y",
            ),
            "used elsewhere",
        ),
    ),
    "gate of another tensor": (
        "ConvBNAct",
        Row(
            lambda n: n.op("Mul", n.conv(_x(n), 4, 4), n.op("Sigmoid", "x")),
            "again, found 'x'",
        ),
    ),
    "clip with a computed bound": (
        "ConvBNAct",
        Row(
            lambda n: n.op("Clip", n.conv(_x(n), 6, 4), n.op("Neg", n.input("low"))),
            "expected a stored tensor",
        ),
    ),
    "broadcast skip": (
        "ConvBNAdd",
        Row(
            lambda n: n.op("Add", n.conv(_x(n), 6, 4), n.op("Exp", n.input("s", 1, 6, 1, 1))),
            "a skip of shape [1, 6, 1, 1]",
        ),
    ),
    "skip of one column": (
        "ConvBNAdd",
        Row(
            lambda n: n.op("Add", n.conv(_x(n), 6, 4), n.op("Exp", n.input("s", "n", 6, 8, 1))),
            "a skip of shape ['n', 6, 8, 1]",
        ),
    ),
    "skip of another rank": (
        "ConvBNAddAct",
        Row(
            lambda n: n.op(
                "Relu", n.op("Add", n.op("Exp", n.input("s", 6, 8, 8)), n.conv(_x(n), 6, 4))
            ),
            "a skip of shape [6, 8, 8]",
        ),
    ),
    "conv that is the smaller one": (
        "ConvBNAdd",
        Row(
            lambda n: n.op(
                "Add", n.conv(n.input("x", 1, 4, 1, 1), 6, 4, kernel=1), n.input("s", 1, 6, 8, 8)
            ),
            "to [1, 6, 1, 1]",
        ),
    ),
    "act with a broadcast skip": (
        "ActAdd",
        Row(
            lambda n: n.op(
                "Add", n.op("Relu", n.conv(_x(n), 6, 4)), n.op("Exp", n.input("s", 1, 6, 1, 1))
            ),
            "a skip of shape [1, 6, 1, 1]",
        ),
    ),
    "act beside a convolution": (
        "ActAdd",
        Row(
            lambda n: n.op("Add", n.op("Relu", n.conv(_x(n), 4, 4)), n.conv("x", 4, 4)),
            "a convolution on the other side",
        ),
    ),
    "conv added to itself": (
        "ConvBNAdd",
        Row(lambda n: n.op("Add", n.conv(_x(n), 4, 4, name="c"), "c_y"), "from outside"),
    ),
}


@pytest.mark.parametrize("build", ACTIVATIONS.values(), ids=list(ACTIVATIONS))
def test_activation(build: Build) -> None:
    assert_kinds(Row(build, "ConvBNAct"))


@pytest.mark.parametrize(("op", "opset"), [("Mish", 18), ("Gelu", 20)])
def test_activation_of_a_later_opset(op: str, opset: int) -> None:
    assert_kinds(Row(lambda n: n.op(op, n.conv(_x(n), 6, 4)), "ConvBNAct", opset))


@pytest.mark.parametrize("row", MATCHES.values(), ids=list(MATCHES))
def test_must_match(row: Row) -> None:
    assert_kinds(row)


@pytest.mark.parametrize(("kind", "row"), REFUSED.values(), ids=list(REFUSED))
def test_must_not_match(kind: str, row: Row) -> None:
    assert_refused(kind, row)


def test_running_statistics_leak_out_of_no_group() -> None:
    plan, _ = recognised(_training)
    assert [group.kind for group in plan.groups] == ["ConvBN"]
    assert plan.groups[0].ops == ("Conv",)


def test_positions_of_the_inputs() -> None:
    plan, _ = recognised(lambda n: n.op("Relu", n.op("Add", n.op("Exp", _x(n)), n.conv("x", 4, 4))))
    (group,) = plan.groups
    assert group.inputs == ("x", "Exp_1_y")
    assert group.inputs_to_quantize == (0, 1)
    assert set(group.parameters) == {"w", "b"}


def test_group_goes_by_the_names_of_the_file() -> None:
    def build(net: Net) -> str:
        y = net.batchnorm(net.conv(_x(net), 4, 4, name="c"), 4, name="bn")
        return net.op("Relu", net.op("Add", y, "x", name="add"), name="relu")

    plan, _ = recognised(build)
    assert plan.groups[0].name == "c"
    assert set(plan.groups[0].nodes) == {"c", "bn", "add", "relu"}


def test_prelu_slope_is_a_parameter() -> None:
    plan, _ = recognised(ACTIVATIONS["PRelu"])
    slope = plan.groups[0].parameters["slope"]
    tensor = next(t for n in plan.model.graph.nodes for t in n.inputs if t.name == slope)
    assert np.shape(tensor.values) == (6, 1, 1)
