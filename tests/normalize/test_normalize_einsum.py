"""Einsum that is a matrix product."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule

from fusewright.graph.walk import values
from fusewright.normalize.labels import Product, parse

SIZES = {
    "a": 2,
    "b": "n",
    "h": 3,
    "i": 4,
    "j": 5,
    "d": 6,
    "e": 7,
    "k": 2,
    "n": 4,
    "w": 5,
    "c": 6,
    "o": 3,
}
Shape = tuple[int | str, ...]


def _shape(labels: str) -> Shape:
    return tuple(SIZES[label] for label in labels)


def _computed(equation: str, *shapes: Shape):
    """An Einsum of two inputs; shapes by label unless they are given."""

    def build(net: Net) -> str:
        terms = equation.replace(" ", "").split("->")[0].split(",")
        given = shapes or [_shape(term) for term in terms]
        names = [net.input(name, *shape) for name, shape in zip("ab", given, strict=True)]
        return net.op("Einsum", *names, equation=equation)

    return build


def _weighted(equation: str, *, first: bool = False, shape: Shape | None = None):
    """An Einsum of an input and a stored weight."""

    def build(net: Net) -> str:
        terms = equation.split("->")[0].split(",")
        mine, stored = terms[::-1] if first else terms
        x = net.input("x", *(shape or _shape(mine)))
        operands = [x, net.draw(*_shape(stored))]
        return net.op("Einsum", *(operands[::-1] if first else operands), equation=equation)

    return build


COMPUTED = {
    "bhid,bhjd->bhij": "Transpose MatMul",
    "b h i d, b h j d -> b h i j": "Transpose MatMul",
    "bhij,bhjd->bhid": "MatMul",
    "bihd,bjhd->bhij": "Transpose Transpose MatMul",
    "bhij,bjhd->bihd": "Transpose MatMul Transpose",
    "bhid,bhjd->bhji": "Transpose MatMul",
    "bhij,bhid->bhjd": "Transpose MatMul",
    "id,jd->ij": "Transpose MatMul",
    # Keras' MultiHeadAttention, keys first.
    "aecd,ahcd->ache": "Transpose Transpose MatMul",
    "ache,aecd->ahcd": "Transpose MatMul Transpose",
    "ij,jk": "MatMul",
    "ij,jk->ki": "Transpose Transpose MatMul",
    # SAM's relative positions: one operand lacks the batch.
    "bhwc,hkc->bhwk": "Transpose MatMul",
    "bhwc,wkc->bhwk": "Transpose Transpose MatMul Transpose",
    "bij,jd->bid": "MatMul",
    # Two labels summed, two rows, two columns.
    "bihd,bjhd->bij": "Reshape Reshape Transpose MatMul",
    "bij,jhd->bihd": "Unsqueeze Transpose MatMul Transpose",
    "bihj,bjd->bihd": "Unsqueeze MatMul",
    # Vectors.
    "bij,bj->bi": "Unsqueeze MatMul Squeeze",
    "bj,bjd->bd": "Unsqueeze MatMul Squeeze",
    "i,i->": "Unsqueeze Unsqueeze MatMul Squeeze",
    "bd,bd->b": "Unsqueeze Unsqueeze MatMul Squeeze",
}
ELLIPSES = {
    "...ij,...jk->...ik": ((2, 3, 4, 5), (2, 3, 5, 6), "MatMul"),
    "...ij,...jk": ((2, 3, 4, 5), (2, 3, 5, 6), "MatMul"),
    "...id,...jd->...ij": (("n", 3, 4, 6), ("n", 3, 5, 6), "Transpose MatMul"),
    "...ij,jk->...ik": ((2, 3, 4, 5), (5, 6), "MatMul"),
    "b...j,jk->b...k": ((2, 3, 4, 5), (5, 6), "MatMul"),
}
WEIGHTED = {
    "bnd,de->bne": ("MatMul", (6, 7)),
    "bnd,ed->bne": ("MatMul", (6, 7)),
    "bnd,dhe->bnhe": ("MatMul Reshape", (6, 21)),
    "bnd,hed->bnhe": ("MatMul Reshape", (6, 21)),
    "bnd,dhe->bhne": ("MatMul Reshape Transpose", (6, 21)),
    "bnhe,hed->bnd": ("Reshape MatMul", (21, 6)),
    "bhne,hed->bnd": ("Transpose Reshape MatMul", (21, 6)),
    "bcw,oc->bow": ("Transpose MatMul Transpose", (6, 3)),
    "bnd,d->bn": ("MatMul Squeeze", (6, 1)),
    # Keras' EinsumDense.
    "bic,cde->bide": ("MatMul Reshape", (6, 42)),
    "bide,deh->bih": ("Reshape MatMul", (42, 3)),
    "d,de->e": ("MatMul", (6, 7)),
    "bd,de": ("MatMul", (6, 7)),
}
WEIGHT_FIRST = {
    "oc,bcw->bow": ("Transpose MatMul Transpose", (6, 3)),
    "ed,bnd->bne": ("MatMul", (6, 7)),
}

LEFT_ALONE = {
    "diagonal": Row(_computed("bii,bij->bj", ("n", 4, 4), ("n", 4, 5)), "a diagonal"),
    "diagonal of the weight": Row(
        lambda n: n.op("Einsum", n.input("x", 2, 4), n.draw(4, 4), equation="bi,ii->bi"),
        "a diagonal",
    ),
    "three operands": Row(
        lambda n: n.op(
            "Einsum",
            *(n.input(name, 4, 4) for name in "abc"),
            equation="ij,jk,kl->il",
        ),
        "3 operands",
    ),
    "one operand": Row(
        lambda n: n.op("Einsum", n.input("a", 2, 3), equation="ij->ji"), "1 operands"
    ),
    "sum over one operand's label": Row(
        _computed("bij,bjd->bd"), "a sum over 'i' of one operand alone"
    ),
    "outer product": Row(_computed("bi,bj->bij"), "no label is summed over"),
    "product by element": Row(_computed("bij,bij->bij"), "no label is summed over"),
    "integers": Row(
        lambda n: n.op(
            "Einsum",
            n.input("a", 2, 3, dtype=np.int64),
            n.input("b", 3, 4, dtype=np.int64),
            equation="ij,jk->ik",
        ),
        "integers",
    ),
    "one size broadcast to another": Row(
        _computed("ij,jk->ik", (2, 1), (5, 6)), "sizes 1 and 5 of label 'j'"
    ),
}


@pytest.mark.parametrize(("equation", "expected"), COMPUTED.items(), ids=list(COMPUTED))
def test_two_computed(equation: str, expected: str) -> None:
    assert_rewritten(Row(_computed(equation), expected))


@pytest.mark.parametrize("equation", ELLIPSES)
def test_ellipsis(equation: str) -> None:
    *shapes, expected = ELLIPSES[equation]
    assert_rewritten(Row(_computed(equation, *shapes), expected))


@pytest.mark.parametrize("equation", [*WEIGHTED, *WEIGHT_FIRST])
def test_weight_is_a_linear(equation: str) -> None:
    expected, weight = (WEIGHTED | WEIGHT_FIRST)[equation]
    model = assert_rewritten(Row(_weighted(equation, first=equation in WEIGHT_FIRST), expected))
    (layer,) = [node for node in model.graph.nodes if node.op == "MatMul"]
    assert values(layer.inputs[1]).shape == weight


def test_dynamic_sequence() -> None:
    build = _weighted("bnd,dhe->bnhe", shape=("n", "s", 6))
    assert_rewritten(Row(build, "MatMul Reshape"))


def test_a_weight_per_head_is_a_stack() -> None:
    model = assert_rewritten(Row(_weighted("bhid,hde->bhie"), "MatMul"))
    assert values(model.graph.nodes[0].inputs[1]).shape == (3, 6, 7)


def test_shapes_are_known_behind() -> None:
    model = assert_rewritten(Row(_computed("bihd,bjhd->bhij"), "Transpose Transpose MatMul"))
    assert [list(n.outputs[0].shape) for n in model.graph.nodes] == [
        ["n", 3, 4, 6],
        ["n", 3, 6, 5],
        ["n", 3, 4, 5],
    ]


@pytest.mark.parametrize(("rule", "row"), by_rule({"EinsumToMatMul": LEFT_ALONE}))
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)


def test_equation_taken_apart() -> None:
    product = parse("bhid, bhjd -> bhij", [4, 4])
    assert product == Product("bhid", "bhjd", "bhij")
    assert (product.batch, product.of_a, product.of_b, product.summed) == ("bh", "i", "j", "d")


def test_result_without_labels_is_in_alphabetical_order() -> None:
    assert parse("kb,ka", [2, 2]) == Product("kb", "ka", "ab")


def test_ellipsis_needs_the_rank() -> None:
    assert parse("...i,...i->...", [None, 2]) == "an ellipsis over a rank that is not known"
