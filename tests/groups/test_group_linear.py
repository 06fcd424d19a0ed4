"""Linear and LinearAct."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from recognising import Row, assert_kinds, assert_refused, recognised


def _x(net: Net, *shape: int | str) -> str:
    return net.input("x", *(shape or ("n", 5)))


MATCHES = {
    "Gemm": Row(lambda n: n.op("Gemm", _x(n), n.draw(7, 5), n.draw(7), transB=1), "Linear"),
    "Gemm without bias": Row(lambda n: n.op("Gemm", _x(n), n.draw(5, 7)), "Linear"),
    "MatMul": Row(lambda n: n.op("MatMul", _x(n), n.draw(5, 7)), "Linear"),
    "MatMul, Add": Row(
        lambda n: n.op("Add", n.op("MatMul", _x(n, "n", 3, 5), n.draw(5, 7)), n.draw(7)), "Linear"
    ),
    "Add, MatMul": Row(
        lambda n: n.op("Add", n.draw(7), n.op("MatMul", _x(n), n.draw(5, 7))), "Linear"
    ),
    "bias of rank 2": Row(
        lambda n: n.op("Add", n.op("MatMul", _x(n), n.draw(5, 7)), n.draw(1, 7)), "Linear"
    ),
    "scalar bias": Row(lambda n: n.op("Add", n.op("MatMul", _x(n), n.draw(5, 7)), 0.5), "Linear"),
    "Relu": Row(lambda n: n.op("Relu", n.op("Gemm", _x(n), n.draw(5, 7), n.draw(7))), "LinearAct"),
    "Relu without bias": Row(
        lambda n: n.op("Relu", n.op("MatMul", _x(n), n.draw(5, 7))), "LinearAct"
    ),
    "SiLU": Row(
        lambda n: n.op(
            "Mul", n.op("Sigmoid", n.op("Gemm", _x(n), n.draw(5, 7), n.draw(7), name="g")), "g_y"
        ),
        "LinearAct",
    ),
    "Softmax is no act": Row(
        lambda n: n.op("Softmax", n.op("Gemm", _x(n), n.draw(5, 7), n.draw(7))), "Linear"
    ),
    "computed bias": Row(
        lambda n: n.op("Add", n.op("MatMul", _x(n), n.draw(5, 7)), n.op("Exp", n.input("b", 7))),
        "Linear",
    ),
    "a matrix added is no bias": Row(
        lambda n: n.op("Add", n.op("MatMul", _x(n, 3, 5), n.draw(5, 7)), n.draw(3, 7)), "Linear"
    ),
    "product used twice": Row(
        lambda n: (
            n.op("Add", n.op("MatMul", _x(n), n.draw(5, 7), name="m"), n.draw(7)),
            n.op("Neg", "m_y"),
        ),
        "Linear",
    ),
}

REFUSED = {
    "two computed tensors": (
        "Linear",
        Row(lambda n: n.op("MatMul", _x(n), n.op("Exp", n.input("z", 5, 7))), "stored matrix"),
    ),
    "stored on the left": (
        "Linear",
        Row(lambda n: n.op("MatMul", n.draw(3, 5), n.op("Exp", n.input("z", 5, 7))), "a constant"),
    ),
    "a stack of matrices": (
        "Linear",
        Row(lambda n: n.op("MatMul", _x(n, 2, 3, 5), n.draw(2, 5, 7)), "stored matrix"),
    ),
    "a vector": (
        "Linear",
        Row(lambda n: n.op("MatMul", _x(n), n.draw(5)), "stored matrix"),
    ),
    "integers": (
        "Linear",
        Row(
            lambda n: n.op(
                "MatMul",
                n.input("x", 3, 5, dtype=np.int32),
                n.store(np.ones((5, 7)), dtype=np.int32),
            ),
            "stored matrix",
        ),
    ),
    "Gemm with a transposed input": (
        "Linear",
        Row(lambda n: n.op("Gemm", _x(n, 5, 3), n.draw(5, 7), transA=1), "no group has a Gemm"),
    ),
}


@pytest.mark.parametrize("row", MATCHES.values(), ids=list(MATCHES))
def test_must_match(row: Row) -> None:
    assert_kinds(row)


@pytest.mark.parametrize(("kind", "row"), REFUSED.values(), ids=list(REFUSED))
def test_must_not_match(kind: str, row: Row) -> None:
    assert_refused(kind, row)


@pytest.mark.parametrize(
    "name", ["product used twice", "computed bias", "a matrix added is no bias"]
)
def test_what_is_no_bias_stays_outside(name: str) -> None:
    plan, _ = recognised(MATCHES[name].build)
    assert plan.groups[0].ops == ("MatMul",)


def test_scales_run_over_the_output_features() -> None:
    plan, _ = recognised(lambda n: n.op("Gemm", _x(n), n.draw(7, 5), n.draw(7), transB=1))
    (weight,) = plan.groups[0].to_dict()["weights"]
    node = plan.model.graph.nodes[0]
    assert weight["axis"] == 1
    assert node.inputs[1].name == weight["tensor"]
    assert node.inputs[1].values.shape == (5, 7)
