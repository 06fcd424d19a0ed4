"""LayerNorm, RMSNorm and GroupNorm: the operator, or the chain where the opset has none."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from recognising import Row, assert_kinds, assert_refused, recognised

from fusewright.groups import KINDS

WIDTH, CHANNELS = 6, 4


def _x(net: Net, *shape: int | str, dtype: type = np.float32) -> str:
    return net.input("x", *(shape or ("n", 5, WIDTH)), dtype=dtype)


def _affine(net: Net, y: str, *shape: int, which: str = "Mul Add") -> str:
    for op in which.split():
        y = net.op(op, y, net.positive(*(shape or (WIDTH,))))
    return y


def _mean(net: Net, x: str, axis: int) -> str:
    if net.opset < 18:
        return net.op("ReduceMean", x, axes=[axis])
    return net.op("ReduceMean", x, [axis])


def _layer_norm(which: str = "Mul Add", axis: int = -1, divisor: str = "Sqrt"):
    def build(net: Net) -> str:
        x = _x(net)
        centred = net.op("Sub", x, _mean(net, x, axis))
        squares = _mean(net, net.op("Pow", centred, 2.0), axis)
        std = net.op(divisor, net.op("Add", squares, 1e-5))
        return _affine(net, net.op("Div", centred, std), which=which)

    return build


def _rms_norm(which: str = "Mul", axis: int = -1):
    def build(net: Net) -> str:
        x = _x(net)
        squares = _mean(net, net.op("Pow", x, 2.0), axis)
        root = net.op("Sqrt", net.op("Add", squares, 1e-5))
        return _affine(net, net.op("Mul", x, net.op("Reciprocal", root)), which=which)

    return build


def _group_norm(which: str = "Mul Add", shape: tuple[int, ...] = (CHANNELS, 1, 1), back=None):
    def build(net: Net) -> str:
        x = _x(net, 2, CHANNELS, 3, 5)
        y = net.op("Reshape", x, [0, 2, -1])
        ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
        y = net.op("InstanceNormalization", y, ones, zeros)
        y = net.op("Reshape", y, back or net.op("Shape", x))
        return _affine(net, y, *shape, which=which)

    return build


MATCHES = {
    "LayerNormalization, computed scale": Row(
        lambda n: n.op("LayerNormalization", _x(n), n.input("s", WIDTH)), ""
    ),
    "LayerNormalization": Row(
        lambda n: n.op("LayerNormalization", _x(n), n.draw(WIDTH), n.draw(WIDTH)), "LayerNorm"
    ),
    "LayerNormalization without bias": Row(
        lambda n: n.op("LayerNormalization", _x(n), n.draw(WIDTH)), "LayerNorm"
    ),
    "RMSNormalization": Row(
        lambda n: n.op("RMSNormalization", _x(n), n.draw(WIDTH)), "RMSNorm", 23
    ),
    "GroupNormalization": Row(
        lambda n: n.op(
            "GroupNormalization",
            _x(n, 2, CHANNELS, 3, 5),
            n.draw(CHANNELS),
            n.draw(CHANNELS),
            num_groups=2,
        ),
        "GroupNorm",
        21,
    ),
    "feeding a Linear": Row(
        lambda n: n.op(
            "MatMul", n.op("LayerNormalization", _x(n), n.draw(WIDTH)), n.draw(WIDTH, 7)
        ),
        "LayerNorm Linear",
    ),
}
for _which in ("Mul Add", "Mul", "Add", ""):
    for _opset in (13, 17):
        MATCHES[f"LayerNorm chain {_which}, opset {_opset}"] = Row(
            _layer_norm(_which), "LayerNorm", _opset
        )
    for _opset in (18, 21):
        MATCHES[f"GroupNorm chain {_which}, opset {_opset}"] = Row(
            _group_norm(_which), "GroupNorm", _opset
        )
for _opset in (13, 18, 23):
    MATCHES[f"RMSNorm chain, opset {_opset}"] = Row(_rms_norm(), "RMSNorm", _opset)
    MATCHES[f"RMSNorm chain without scale, opset {_opset}"] = Row(_rms_norm(""), "RMSNorm", _opset)

REFUSED = {
    "chain over the tokens": ("LayerNorm", Row(_layer_norm("", axis=1), "axes", 13)),
    "RMSNorm over the tokens": ("RMSNorm", Row(_rms_norm("", axis=1), "the constant -1", 18)),
    "chain without a root": ("LayerNorm", Row(_layer_norm("", divisor="Abs"), "found Abs", 13)),
    "groups, another shape behind": (
        "GroupNorm",
        Row(_group_norm("", back=[2, 3, CHANNELS, 5]), "another shape behind"),
    ),
}


@pytest.mark.parametrize("row", MATCHES.values(), ids=list(MATCHES))
def test_must_match(row: Row) -> None:
    assert_kinds(row)


@pytest.mark.parametrize(("kind", "row"), REFUSED.values(), ids=list(REFUSED))
def test_must_not_match(kind: str, row: Row) -> None:
    assert_refused(kind, row)


@pytest.mark.parametrize(
    "name", ["LayerNorm chain Mul Add, opset 13", "GroupNorm chain Mul Add, opset 18"]
)
def test_parameters_are_inputs_of_the_call(name: str) -> None:
    plan, _ = recognised(MATCHES[name].build, MATCHES[name].opset)
    (group,) = plan.groups
    assert list(group.parameters) == ["scale", "bias"]
    assert group.inputs == ("x",)
    assert group.inputs_to_quantize == ()


def test_a_scale_per_token_is_no_parameter() -> None:
    plan, _ = recognised(lambda n: n.op("Mul", _layer_norm("")(n), n.positive(5, 1)), 13)
    (group,) = plan.groups
    assert group.parameters == {}
    assert "Mul" not in group.ops


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm", "GroupNorm"])
def test_contract_is_empty_and_says_why(kind: str) -> None:
    spec = KINDS[kind]
    assert spec.inputs_to_quantize == frozenset()
    assert spec.never_quantized == (
        f"{kind} reads float; its output is quantized where it is read in INT8"
    )
