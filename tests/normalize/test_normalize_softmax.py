"""Softmax over the last axis, without what undoes itself around it."""

from __future__ import annotations

import pytest
from building import Net, as_model, assert_equal, ops
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule


def _x(net: Net, *shape: int | str) -> str:
    return net.input("x", *(shape or ("n", 3, 4, 5)))


def _on_matrix(inner: list[int] | int, outer: list[int] | None, axis: int = -1):
    """Softmax of a matrix; `inner` an integer is a Flatten, `outer` None the shape of x."""

    def build(net: Net) -> str:
        x = _x(net)
        if isinstance(inner, int):
            rows = net.op("Flatten", x, axis=inner)
        else:
            rows = net.op("Reshape", x, inner)
        target = net.op("Shape", x) if outer is None else outer
        return net.op("Reshape", net.op("Softmax", rows, axis=axis), target)

    return build


def _between(first: list[int], last: list[int], axis: int = -1):
    def build(net: Net) -> str:
        y = net.op("Softmax", net.op("Transpose", _x(net), perm=first), axis=axis)
        return net.op("Transpose", y, perm=last)

    return build


PLAIN = {
    "rank 4, last axis by number": lambda n: n.op("Softmax", _x(n), axis=3),
    "axis by default": lambda n: n.op("Softmax", _x(n)),
    "Reshape, shape of x": _on_matrix([-1, 5], None),
    "Reshape, stored shape": _on_matrix([-1, 5], [-1, 3, 4, 5]),
    "axis 1 of the matrix": _on_matrix([-1, 5], None, axis=1),
    "Flatten": _on_matrix(3, None),
    "Transposes that leave the last axis": _between([0, 2, 1, 3], [0, 2, 1, 3]),
    "Transposes, axis that was the last": _between([0, 3, 1, 2], [0, 2, 3, 1], axis=1),
}
NO_MATRIX = {
    "over two axes": Row(_on_matrix(2, None), "a reshape of the last axis"),
    "over the channels": Row(_on_matrix([-1, 3], None), "a reshape of the last axis"),
    "another axis": Row(_on_matrix([-1, 5], None, axis=0), "another axis than the last one"),
    "another shape behind": Row(_on_matrix([-1, 5], [-1, 4, 3, 5]), "another shape behind"),
    "read elsewhere": Row(
        lambda n: (
            n.op(
                "Reshape",
                n.op("Softmax", n.op("Reshape", _x(n), [-1, 5]), name="softmax"),
                n.op("Shape", "x"),
            ),
            n.op("Neg", "softmax_y"),
        ),
        "'softmax_y' used elsewhere",
    ),
}
NO_TRANSPOSES = {
    "an axis made the last one": Row(
        _between([0, 2, 3, 1], [0, 3, 1, 2]), "an axis that the Transposes make the last one"
    ),
    "Transposes that do not undo each other": Row(
        _between([0, 2, 3, 1], [0, 1, 3, 2]), "do not undo each other"
    ),
}
NO_LAST = {"channels": Row(lambda n: n.op("Softmax", _x(n), axis=1), "another axis")}


@pytest.mark.parametrize("build", PLAIN.values(), ids=list(PLAIN))
def test_over_the_last_axis(build) -> None:
    model = assert_rewritten(Row(build, "Softmax"))
    assert model.graph.nodes[0].attrs.get("axis", -1) == -1


@pytest.mark.parametrize(
    ("rule", "row"),
    by_rule(
        {
            "SoftmaxOnMatrix": NO_MATRIX,
            "SoftmaxBetweenTransposes": NO_TRANSPOSES,
            "SoftmaxLastAxis": NO_LAST,
        }
    ),
)
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)


@pytest.mark.parametrize(
    ("axis", "shape", "expected"),
    [
        (3, ("n", 3, 4, 5), "Softmax"),
        (1, ("n", 5), "Softmax"),
        (None, ("n", 5), "Softmax"),
        (2, ("n", 3, 5), "Softmax"),
        # Before opset 13 the axes behind belong to it.
        (1, ("n", 3, 5), "Flatten Softmax Reshape"),
    ],
)
def test_opset_11(axis: int | None, shape: tuple[int | str, ...], expected: str) -> None:
    net = Net(11)
    attrs = {} if axis is None else {"axis": axis}
    proto = net.proto(net.op("Softmax", _x(net, *shape), **attrs))
    model = as_model(proto, clean=True)
    assert ops(model) == expected
    assert_equal(proto, model)
