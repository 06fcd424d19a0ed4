"""Linear in one form: MatMul with W as [in, out], then Add."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule

from fusewright.graph.walk import values


def _gemm(*c_shape: int, w: tuple[int, int] = (5, 7), computed_c: bool = False, **attrs: object):
    def build(net: Net) -> str:
        c = net.input("c", *c_shape) if computed_c else net.draw(*c_shape, name="b")
        return net.op("Gemm", net.input("x", 3, 5), net.draw(*w), c, **attrs)

    return build


def _bare_gemm(**attrs: object):
    return lambda n: n.op("Gemm", n.input("x", "n", 5), n.draw(5, 7), **attrs)


def _tied(net: Net) -> str:
    w = net.draw(5, 5)
    return net.op("Gemm", net.op("Gemm", net.input("x", 3, 5), w, transB=1), w)


GEMM = {
    "plain": Row(_gemm(7), "MatMul Add"),
    "transB": Row(_gemm(7, w=(7, 5), transB=1), "MatMul Add"),
    "square weight, transB": Row(
        lambda n: n.op("Gemm", n.input("x", "n", 5), n.draw(5, 5), n.draw(5), transB=1),
        "MatMul Add",
    ),
    "alpha": Row(_gemm(7, alpha=0.5), "MatMul Add"),
    "beta": Row(_gemm(7, beta=2.5), "MatMul Add"),
    "alpha, beta, transB": Row(_gemm(7, w=(7, 5), transB=1, alpha=0.5, beta=2.5), "MatMul Add"),
    "without C": Row(_bare_gemm(), "MatMul"),
    "without C, with a beta of its own": Row(_bare_gemm(beta=0.3), "MatMul"),
    "C omitted by name": Row(
        lambda n: n.op("Gemm", n.input("x", "n", 5), n.draw(5, 7), None), "MatMul"
    ),
    "beta of 0": Row(_gemm(7, beta=0.0), "MatMul Add"),
    "scalar C": Row(_gemm(), "MatMul Add"),
    "C of one element": Row(_gemm(1), "MatMul Add"),
    "C as a row": Row(_gemm(1, 7), "MatMul Add"),
    "C as a column": Row(_gemm(3, 1), "MatMul Add"),
    "C as a matrix": Row(_gemm(3, 7), "MatMul Add"),
    "computed C": Row(_gemm(3, 7, computed_c=True), "MatMul Add"),
    "computed C with alpha": Row(_gemm(7, computed_c=True, alpha=0.5), "MatMul Add"),
    "float64": Row(
        lambda n: n.op(
            "Gemm",
            n.input("x", 3, 5, dtype=np.float64),
            n.draw(7, 5, dtype=np.float64),
            n.draw(7, dtype=np.float64),
            transB=1,
        ),
        "MatMul Add",
    ),
    "one weight, two layers": Row(_tied, "MatMul MatMul"),
}

NO_GEMM = {
    "transA": Row(
        lambda n: n.op("Gemm", n.input("x", 5, 3), n.draw(5, 7), n.draw(7), transA=1),
        "a transposed input",
    ),
    "computed C to be scaled": Row(_gemm(7, computed_c=True, beta=0.5), "would have to be scaled"),
    "computed weight": Row(
        lambda n: n.op("Gemm", n.input("x", 3, 5), n.input("w", 5, 7)), "the computed weight 'w'"
    ),
    "stored input": Row(
        lambda n: n.op("Gemm", n.draw(3, 5), n.op("Exp", n.input("w", 5, 7))),
        "a stored first operand",
    ),
}


def _around(
    x: tuple[int | str, ...],
    inner: list[int] | None,
    outer: list[int],
    *,
    bias: str = "gemm",
    w: tuple[int, int] = (5, 7),
    axis: int = 1,
):
    """Reshape, a Linear, Reshape; `inner` None is a Flatten."""

    def build(net: Net) -> str:
        source = net.input("x", *x)
        rows = net.op("Flatten", source, axis=axis) if inner is None else None
        rows = rows or net.op("Reshape", source, inner)
        if bias == "gemm":
            y = net.op("Gemm", rows, net.draw(*w), net.draw(w[1]))
        else:
            y = net.op("MatMul", rows, net.draw(*w))
            if bias == "add":
                y = net.op("Add", net.draw(w[1]), y)
        return net.op("Reshape", y, outer)

    return build


RESHAPED = {
    "Gemm": Row(_around((2, 3, 5), [-1, 5], [2, 3, 7]), "MatMul Add"),
    "Gemm, sizes given": Row(_around((2, 3, 5), [6, 5], [2, 3, -1]), "MatMul Add"),
    "MatMul": Row(_around((2, 3, 5), [-1, 5], [2, 3, 7], bias="none"), "MatMul"),
    "MatMul and Add": Row(_around((2, 3, 5), [-1, 5], [2, 3, 7], bias="add"), "MatMul Add"),
    "Flatten": Row(_around((2, 3, 5), None, [2, 3, 7], axis=2), "MatMul Add"),
    "dynamic batch": Row(_around(("n", 3, 5), [-1, 5], [-1, 3, 7]), "MatMul Add"),
    "rank 4": Row(_around((2, 3, 4, 5), [-1, 5], [2, 3, 4, 7]), "MatMul Add"),
}

NOT_RESHAPED = {
    "last axis changed in front": Row(
        _around((2, 5, 3), [-1, 5], [2, 3, 7]), "a reshape of the last axis"
    ),
    "last axis changed behind": Row(
        _around((2, 7, 5), [-1, 5], [2, 1, 49]), "reshape of the last axis"
    ),
    "leading axes swapped": Row(_around((2, 3, 5), [-1, 5], [3, 2, 7]), "other leading axes"),
    "leading axes regrouped": Row(_around((4, 3, 5), [-1, 5], [2, 6, 7]), "other leading axes"),
    "another rank": Row(_around((2, 3, 5), [-1, 5], [1, 2, 3, 7]), "shapes that are not known"),
    "images to a matrix, as before a classifier": Row(
        _around((2, 5, 2, 2), None, [2, 7, 1, 1], w=(20, 7)), "a reshape of the last axis"
    ),
    "two dynamic axes": Row(
        lambda n: n.op(
            "Reshape",
            n.op("MatMul", n.op("Reshape", n.input("x", "n", "t", 5), [-1, 5]), n.draw(5, 7)),
            n.store([-1, 4, 7], dtype=np.int64),
        ),
        "other leading axes",
    ),
    "rows read elsewhere": Row(
        lambda n: (_around((2, 3, 5), [-1, 5], [2, 3, 7], bias="none")(n), n.nodes[0].output[0]),
        "used elsewhere",
    ),
}
_NEAR_MISSES = {"GemmToMatMul": NO_GEMM, "LinearOnMatrix": NOT_RESHAPED}


@pytest.mark.parametrize("row", GEMM.values(), ids=list(GEMM))
def test_gemm(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize("row", RESHAPED.values(), ids=list(RESHAPED))
def test_reshapes_around(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize("swap", [False, True])
def test_matmul_and_add_is_the_normal_form(swap: bool) -> None:
    def build(net: Net) -> str:
        y, b = net.op("MatMul", net.input("x", "n", 4, 5), net.draw(5, 7)), net.draw(7)
        return net.op("Add", b, y) if swap else net.op("Add", y, b)

    assert_rewritten(Row(build, "MatMul Add"))


@pytest.mark.parametrize(
    ("rule", "row"),
    by_rule(_NEAR_MISSES),
)
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)


def test_weight_is_stored_as_in_out() -> None:
    model = assert_rewritten(Row(_gemm(7, w=(7, 5), transB=1), "MatMul Add"))
    assert values(model.graph.nodes[0].inputs[1]).shape == (5, 7)
