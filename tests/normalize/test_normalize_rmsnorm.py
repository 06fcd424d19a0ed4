"""RMSNorm chains: the operator from opset 23 on, one chain before."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from building import Net
from norms import AXES_INPUT_OPSET, EPSILON, INVERSES, WIDTH, inverse, mean, square, tokens
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule

from fusewright.graph.model import Model
from fusewright.graph.walk import values

RMS = "RMSNormalization"
CHAIN = "Pow ReduceMean Add Sqrt Reciprocal Mul"


def _chain(
    power: str = "Pow",
    root: str = "Reciprocal",
    order: str = "(x·r)·γ",
    axes: tuple[int, ...] = (-1,),
    shape: tuple[int, ...] = (WIDTH,),
):
    def build(net: Net) -> str:
        x = tokens(net)
        shifted = net.op("Add", mean(net, square(net, x, power), axes), EPSILON)
        if root == "Sqrt":
            y = net.op("Div", x, net.op("Sqrt", shifted))
            return y if order == "x·r" else net.op("Mul", y, net.positive(*shape))
        factor = inverse(net, shifted, root)
        if order == "x·(r·γ)":
            return net.op("Mul", x, net.op("Mul", factor, net.positive(*shape)))
        y = net.op("Mul", factor, x)
        return y if order == "x·r" else net.op("Mul", net.positive(*shape), y)

    return build


def _cast(net: Net) -> str:
    """LLaMA's: to float32 and back, in a model that is float32."""
    x = net.op("Cast", tokens(net), to=onnx.TensorProto.FLOAT)
    factor = inverse(net, net.op("Add", mean(net, square(net, x)), EPSILON), "Div")
    y = net.op("Cast", net.op("Mul", x, factor), to=onnx.TensorProto.FLOAT)
    return net.op("Mul", net.positive(WIDTH), y)


def _without_epsilon(net: Net) -> str:
    x = tokens(net)
    return net.op("Div", x, net.op("Sqrt", mean(net, square(net, x))))


SPELLINGS = {
    f"{power}, {root}, {order}": _chain(power, root, order)
    for power, root, order in product(
        ("Pow", "Mul"), ("Sqrt", *INVERSES), ("(x·r)·γ", "x·(r·γ)", "x·r")
    )
    if root != "Sqrt" or order != "x·(r·γ)"
}
SPELLINGS |= {
    "positive axis": _chain(axes=(2,)),
    "last two axes": _chain(axes=(1, 2), shape=(5, WIDTH)),
    "scale of full rank": _chain(shape=(1, 1, WIDTH)),
    "scalar scale": _chain(shape=()),
    "Cast to the same type": _cast,
    "no epsilon": _without_epsilon,
}


def _leaking(net: Net, *, output: bool = False) -> tuple[str, str]:
    x = tokens(net)
    shifted = net.op("Add", mean(net, square(net, x)), EPSILON)
    y = net.op("Mul", x, net.op("Reciprocal", net.op("Sqrt", shifted), name="factor"))
    return net.op("Mul", y, net.positive(WIDTH)), (
        "factor_y" if output else net.op("Neg", "factor_y")
    )


def _epsilon_outside(net: Net) -> str:
    x = tokens(net)
    root = net.op("Sqrt", mean(net, square(net, x)))
    return net.op("Div", x, net.op("Add", root, EPSILON))


def _float64(net: Net) -> str:
    x = tokens(net, dtype=np.float64)
    shifted = net.op("Add", mean(net, net.op("Mul", x, x)), np.float64(EPSILON))
    return net.op("Div", x, net.op("Sqrt", shifted))


def _half_of_a_layer_norm(net: Net) -> str:
    """The mean is read elsewhere, so that no LayerNorm can take it."""
    x = tokens(net)
    average = mean(net, x)
    centred = net.op("Sub", x, average)
    std = net.op("Sqrt", net.op("Add", mean(net, square(net, centred)), EPSILON))
    return net.op("Div", centred, std), net.op("Neg", average)


def _sum_of_squares(net: Net) -> str:
    x = tokens(net)
    total = net.op("ReduceSum", square(net, x), [-1])
    return net.op("Div", x, net.op("Sqrt", net.op("Add", total, EPSILON)))


LEFT_ALONE = {
    "an axis that is not the last": Row(
        _chain(axes=(1,), order="x·r"), "other axes than the last ones", 23
    ),
    "every axis": Row(_chain(axes=(0, 1, 2), order="x·r"), "other axes than the last ones", 23),
    "scale per token": Row(_chain(order="x·(r·γ)", shape=(5, 1)), "a scale of shape [5, 1]", 23),
    "epsilon outside the root": Row(_epsilon_outside, "outside the square root", 23),
    "factor read elsewhere": Row(_leaking, "'factor_y' used elsewhere", 23),
    "factor is an output": Row(lambda n: _leaking(n, output=True), "used elsewhere", 23),
    "half of a LayerNorm": Row(_half_of_a_layer_norm, "a mean is subtracted in front", 23),
    "a sum of squares": Row(_sum_of_squares, "expected ReduceMean, found ReduceSum", 23),
    "float64": Row(_float64, "type float64", 23),
    "mean without its axis": Row(
        lambda n: n.op(
            "Div",
            n.input("x", WIDTH, WIDTH),
            n.op("Sqrt", n.op("Add", mean(n, square(n, "x"), keepdims=0), EPSILON)),
        ),
        "ReduceMean.keepdims = 1, found 0",
        23,
    ),
    "opset 20": Row(_chain(), "needs opset 23; the chain stays", 20),
}


@pytest.mark.parametrize("build", SPELLINGS.values(), ids=list(SPELLINGS))
def test_operator(build) -> None:
    assert_rewritten(Row(build, RMS, 23))


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize("name", SPELLINGS)
def test_one_chain_before_opset_23(name: str, opset: int) -> None:
    scaled = "x·r" not in name.split(", ") and name != "no epsilon"
    model = assert_rewritten(Row(SPELLINGS[name], CHAIN + " Mul" * scaled, opset))
    assert _axes(model) == ([-2, -1] if name == "last two axes" else [-1])


def _axes(model: Model) -> list[int]:
    node = next(node for node in model.graph.nodes if node.op == "ReduceMean")
    if model.opset < AXES_INPUT_OPSET:
        return list(node.attrs["axes"])
    return values(node.inputs[1]).tolist()


def test_scale_per_token_stays_outside() -> None:
    assert_rewritten(Row(_chain(shape=(5, 1)), f"{RMS} Mul", 23))


@pytest.mark.parametrize(("rule", "row"), by_rule({"RMSNormChain": LEFT_ALONE}))
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)
