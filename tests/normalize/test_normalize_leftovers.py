"""Identity, Dropout, a Pad by zero, zeros added, a Sum of two."""

from __future__ import annotations

import numpy as np
import pytest
from building import Net
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule


def _x(net: Net) -> str:
    return net.input("x", 2, 4, 5, 6)


def _dropout(*more: object, outputs: int = 1, read_mask: bool = False, **attrs: object):
    def build(net: Net) -> str | tuple[str, ...]:
        results = net.op("Dropout", net.op("Relu", _x(net)), *more, outputs=outputs, **attrs)
        first = results if outputs == 1 else results[0]
        y = net.op("Neg", first)
        return (y, results[1]) if read_mask else y

    return build


def _mask_inside(net: Net) -> str:
    y, mask = net.op("Dropout", net.op("Relu", _x(net)), outputs=2)
    return net.op("Where", mask, y, "x")


IDENTITY = {
    "between": Row(lambda n: n.op("Neg", n.op("Identity", n.op("Relu", _x(n)))), "Relu Neg"),
    "of an input": Row(lambda n: n.op("Relu", n.op("Identity", _x(n))), "Relu"),
    "of a stored tensor": Row(
        lambda n: n.op("Conv", _x(n), n.op("Identity", n.draw(6, 4, 3, 3))), "Conv"
    ),
    "that names an output": Row(lambda n: n.op("Identity", n.op("Relu", _x(n))), "Relu"),
    "that names an output, also read inside": Row(
        lambda n: (n.op("Identity", n.op("Relu", _x(n), name="r")), n.op("Neg", "r_y")), "Relu Neg"
    ),
    "twice": Row(lambda n: n.op("Identity", n.op("Identity", n.op("Relu", _x(n)))), "Relu"),
    "that names two outputs": Row(
        lambda n: (n.op("Identity", n.op("Relu", _x(n), name="r")), n.op("Identity", "r_y")),
        "Relu Identity",
    ),
}

NO_IDENTITY = {
    "an output that is an input": Row(lambda n: n.op("Identity", _x(n)), "names an output"),
    "an output that is stored": Row(
        lambda n: (n.op("Relu", _x(n)), n.op("Identity", n.draw(3))), "names an output"
    ),
    "an output that is another's": Row(
        lambda n: (n.op("Relu", _x(n), name="r"), n.op("Identity", "r_y")), "names an output"
    ),
}

DROPOUT = {
    "plain": Row(_dropout(), "Relu Neg"),
    "with a ratio": Row(_dropout(0.3), "Relu Neg"),
    "training mode false": Row(_dropout(0.3, np.array(False)), "Relu Neg"),
    "mask not read": Row(_dropout(outputs=2), "Relu Neg"),
    "ratio as attribute": Row(_dropout(ratio=0.3), "Relu Neg", opset=9),
    "names an output": Row(lambda n: n.op("Dropout", n.op("Relu", _x(n))), "Relu"),
}

NO_DROPOUT = {
    "mask is an output": Row(_dropout(outputs=2, read_mask=True), "mask is used"),
    "mask is read": Row(_mask_inside, "mask is used"),
    # A ratio of 0 keeps the proof deterministic.
    "training mode": Row(_dropout(0.0, np.array(True)), "training mode"),
    "computed training mode": Row(
        lambda n: n.op(
            "Dropout", n.op("Relu", _x(n)), 0.0, n.op("Not", n.input("t", dtype=np.bool_))
        ),
        "training mode",
    ),
}

ZERO_PAD = {
    "zeros": Row(lambda n: n.op("Relu", n.op("Pad", _x(n), [0] * 8)), "Relu"),
    "zeros with a value": Row(lambda n: n.op("Relu", n.op("Pad", _x(n), [0] * 8, 5.0)), "Relu"),
    "reflecting zeros": Row(
        lambda n: n.op("Relu", n.op("Pad", _x(n), [0] * 8, mode="reflect")), "Relu"
    ),
    "zeros of selected axes": Row(
        lambda n: n.op("Relu", n.op("Pad", _x(n), [0, 0], None, [3])), "Relu", opset=18
    ),
    "opset 9": Row(lambda n: n.op("Relu", n.op("Pad", _x(n), pads=[0] * 8)), "Relu", opset=9),
    "computed value": Row(
        lambda n: n.op("Relu", n.op("Pad", _x(n), [0] * 8, n.input("fill"))), "Relu"
    ),
}

NO_ZERO_PAD = {
    "one": Row(lambda n: n.op("Relu", n.op("Pad", _x(n), [0] * 7 + [1])), "it pads"),
    "sums to nothing": Row(
        lambda n: n.op("Relu", n.op("Pad", _x(n), [0, 0, 0, 1, 0, 0, 0, -1])), "it pads"
    ),
    "computed": Row(
        lambda n: n.op(
            "Pad", _x(n), n.op("Mul", n.op("Cast", n.input("p", 8), to=7), np.zeros(8, np.int64))
        ),
        "the computed tensor",
    ),
}

SUM = {
    "two": Row(lambda n: n.op("Sum", n.op("Relu", _x(n)), "x"), "Relu Add"),
    "a tensor with itself": Row(lambda n: n.op("Sum", _x(n), "x"), "Add"),
    "a constant": Row(lambda n: n.op("Sum", n.draw(6), _x(n)), "Add"),
    "broadcast": Row(lambda n: n.op("Sum", n.input("z", 4, 1, 1), _x(n)), "Add"),
    "one": Row(lambda n: n.op("Neg", n.op("Sum", _x(n))), "Neg"),
    "Concat of one": Row(lambda n: n.op("Neg", n.op("Concat", _x(n), axis=1)), "Neg"),
}

NO_SUM = {
    "three": Row(
        lambda n: n.op("Sum", _x(n), n.op("Relu", "x"), n.op("Neg", "x")), "expected 2 inputs"
    ),
}


def _plus(*sizes: int, value: float = 0.0, x: tuple[int | str, ...] = (2, 4, 5, 6)):
    stored = np.full(sizes, value, np.float32)
    return lambda n: n.op("Relu", n.op("Add", n.input("x", *x), stored))


ZEROS = {
    "a number": Row(_plus(), "Relu"),
    "a vector": Row(_plus(6), "Relu"),
    "a mask": Row(_plus(1, 1, 5, 6), "Relu"),
    "the batch is open": Row(_plus(1, 1, 5, 1, x=("n", 4, 5, 6)), "Relu"),
    "on the left": Row(lambda n: n.op("Relu", n.op("Add", np.zeros(6, np.float32), _x(n))), "Relu"),
    "names an output": Row(lambda n: n.op("Add", n.op("Relu", _x(n)), [0.0]), "Relu"),
}

NO_ZEROS = {
    "one that is not": Row(
        lambda n: n.op("Add", _x(n), np.array([0, 0, 0, 0, 0, 1e-30], np.float32)), "it adds"
    ),
    "a higher rank": Row(_plus(1, 1, 1, 1, 1), "it may enlarge"),
    "a larger axis": Row(_plus(5, 6, x=(2, 4, 1, 6)), "it may enlarge"),
    "an open axis": Row(_plus(2, 6, x=(2, 4, "n", 6)), "it may enlarge"),
}


def _reshapes(*shapes: list[int], inner: bool = True):
    """Sums of Reshapes of one tensor, each with a stored shape of its own."""

    def build(net: Net) -> str | tuple[str, ...]:
        x = net.op("Relu", _x(net))
        parts = [net.op("Reshape", x, shape) for shape in shapes]
        return net.op("Sum", *parts, [1.0]) if inner else tuple(parts)

    return build


RESHAPES = {
    "three of one shape": Row(_reshapes([2, 120], [2, 120], [2, 120]), "Relu Reshape Sum"),
    "two and one": Row(_reshapes([240], [240], [1, 240]), "Relu Reshape Reshape Sum"),
}
NO_RESHAPES = {
    "another shape": Row(_reshapes([2, 120], [2, 1, 120]), "the only one of this shape"),
    "two outputs": Row(_reshapes([240], [240], inner=False), "it names an output"),
}
_ROWS = {
    "Reshape": RESHAPES,
    "Identity": IDENTITY,
    "Dropout": DROPOUT,
    "Pad": ZERO_PAD,
    "Add": ZEROS,
    "Sum": SUM,
}
_NEAR_MISSES = {
    "EqualReshape": NO_RESHAPES,
    "Identity": NO_IDENTITY,
    "Dropout": NO_DROPOUT,
    "ZeroPad": NO_ZERO_PAD,
    "AddedZeros": NO_ZEROS,
    "SumOfTwo": NO_SUM,
}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{op} {name}")
        for op, rows in _ROWS.items()
        for name, row in rows.items()
    ],
)
def test_says_nothing(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize(
    ("rule", "row"),
    by_rule(_NEAR_MISSES),
)
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)
