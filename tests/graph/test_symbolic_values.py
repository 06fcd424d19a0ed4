"""Values of shape tensors found for every operator of shape arithmetic, beside onnxruntime's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from building import Net
from propagating import assert_true, found_in, written

from fusewright.graph.facts import MOST_VALUES

INT = np.int64
FLOAT, INT32, INT64, BOOL = 1, 6, 7, 9


@dataclass(frozen=True)
class Row:
    """A computation on the shape [batch, seq, 12], and the elements it must be found to give.

    None is an element that must stay unknown; `expected` is None where nothing can be known.
    """

    build: Callable[[Net, str], str]
    expected: Any
    opset: int = 17


def _at(net: Net, shape: str, index: int) -> str:
    return net.op("Gather", shape, INT(index))


def _batch(net: Net, shape: str) -> str:
    return _at(net, shape, 0)


def _arithmetic(op: str, left: int, right: int | str, dtype: type = INT) -> Callable[..., str]:
    """`shape[left] op right`; a text is a position in the shape too."""

    def build(net: Net, shape: str) -> str:
        other = _at(net, shape, int(right)) if isinstance(right, str) else dtype(right)
        return net.op(op, _at(net, shape, left), other)

    return build


def _of_multiple(op: str, factor: int, offset: int, by: int) -> Callable[..., str]:
    """`(factor·batch + offset) op by`."""

    def build(net: Net, shape: str) -> str:
        product = net.op("Mul", _batch(net, shape), INT(factor))
        return net.op(op, net.op("Add", product, INT(offset)), INT(by))

    return build


ARITHMETIC = {
    "Add": Row(_arithmetic("Add", 0, 3), "batch + 3"),
    "Add of two": Row(_arithmetic("Add", 0, "1"), "batch + seq"),
    "Sub": Row(_arithmetic("Sub", 1, 1), "seq - 1"),
    "Sub of itself": Row(_arithmetic("Sub", 1, "1"), 0),
    "Mul": Row(_arithmetic("Mul", 0, "1"), "batch*seq"),
    "Mul of numbers": Row(_arithmetic("Mul", 2, 3), 36),
    "Div exact": Row(_of_multiple("Div", 6, 0, 3), "2*batch"),
    "Div rounded down": Row(_of_multiple("Div", 6, 5, 3), "2*batch + 1"),
    "Div of what may be negative": Row(_of_multiple("Div", 6, -5, 3), None),
    "Div open": Row(_arithmetic("Div", 0, 2), None),
    "Div of numbers": Row(_arithmetic("Div", 2, 5), 2),
    "Div of a negative number": Row(lambda net, s: net.op("Div", INT(-7), _at(net, s, 2)), 0),
    "Div towards zero": Row(
        lambda net, s: net.op("Div", net.op("Neg", _at(net, s, 2)), INT(5)), -2
    ),
    "Mod exact": Row(_of_multiple("Mod", 7, 0, 7), 0),
    "Mod rest": Row(_of_multiple("Mod", 7, 3, 7), 3),
    "Mod open": Row(_arithmetic("Mod", 0, 7), None),
    "Mod of numbers": Row(_arithmetic("Mod", 2, 7), 5),
    "Mod of a negative number": Row(
        lambda net, s: net.op("Mod", net.op("Neg", _at(net, s, 2)), INT(7)), 2
    ),
    "Mod as C has it": Row(
        lambda net, s: net.op("Mod", net.op("Neg", _at(net, s, 2)), INT(7), fmod=1), -5
    ),
    "Mod as C has it, open": Row(
        lambda net, s: net.op("Mod", _batch(net, s), INT(7), fmod=1), None
    ),
    "Mod as C has it, exact": Row(
        lambda net, s: net.op("Mod", net.op("Mul", _batch(net, s), INT(7)), INT(7), fmod=1), 0
    ),
    "padding to a multiple": Row(
        lambda net, s: net.op(
            "Mod", net.op("Sub", INT(7), net.op("Mod", _at(net, s, 2), INT(7))), INT(7)
        ),
        2,
    ),
    "Neg": Row(lambda net, s: net.op("Neg", _batch(net, s)), "-batch"),
    "Abs": Row(lambda net, s: net.op("Abs", _batch(net, s)), "batch"),
    "Abs open": Row(lambda net, s: net.op("Abs", net.op("Neg", _batch(net, s))), None),
    "Abs of a number": Row(lambda net, s: net.op("Abs", net.op("Neg", _at(net, s, 2))), 12),
    "Pow": Row(_arithmetic("Pow", 2, 2), 144),
    "Pow open": Row(_arithmetic("Pow", 0, 2), None),
    "Min": Row(lambda net, s: net.op("Min", _at(net, s, 2), INT(5)), 5),
    "Min with zero": Row(lambda net, s: net.op("Min", _batch(net, s), INT(0)), 0),
    "Min open": Row(lambda net, s: net.op("Min", _batch(net, s), INT(4)), None),
    "Max": Row(lambda net, s: net.op("Max", _batch(net, s), INT(-1), INT(0)), "batch"),
    "Max open": Row(lambda net, s: net.op("Max", _batch(net, s), INT(1)), None),
    "Max of two": Row(
        lambda net, s: net.op("Max", _batch(net, s), net.op("Add", _batch(net, s), INT(1))),
        "batch + 1",
    ),
}
COMPARISON = {
    "Equal": Row(_arithmetic("Equal", 0, "0"), True),
    "Equal never": Row(lambda net, s: net.op("Equal", s, [-1]), [False, False, False]),
    "Equal open": Row(_arithmetic("Equal", 0, "1"), None),
    "Equal to one": Row(_arithmetic("Equal", 0, 1), None),
    "Less": Row(_arithmetic("Less", 0, 0), False),
    "Less certain": Row(_arithmetic("Less", 2, 13), True),
    "Less open": Row(_arithmetic("Less", 0, 1), None),
    "Greater": Row(_arithmetic("Greater", 0, -1), True),
    "Greater open": Row(_arithmetic("Greater", 0, 0), None),
    "GreaterOrEqual": Row(_arithmetic("GreaterOrEqual", 0, 0), True),
    "LessOrEqual": Row(_arithmetic("LessOrEqual", 0, -1), False),
    "And": Row(
        lambda net, s: net.op("And", net.op("Equal", s, [1]), net.op("Equal", s, [-1])),
        [False, False, False],
    ),
    "Or": Row(
        lambda net, s: net.op("Or", net.op("Equal", s, [1]), net.op("Less", s, [13])),
        [None, None, True],
    ),
    "Not": Row(lambda net, s: net.op("Not", net.op("Equal", s, [1])), [None, None, True]),
    "Where": Row(
        lambda net, s: net.op("Where", net.op("Equal", s, [-1]), [7, 8, 9], s),
        ["batch", "seq", 12],
    ),
    "Where open": Row(
        lambda net, s: net.op("Where", net.op("Equal", s, [1]), [7, 8, 9], s), [None, None, 12]
    ),
    "Where open, both the same": Row(
        lambda net, s: net.op("Where", net.op("Equal", s, [1]), s, s), ["batch", "seq", 12]
    ),
}
MOVEMENT = {
    "Shape": Row(lambda net, s: s, ["batch", "seq", 12]),
    "Shape, part": Row(
        lambda net, s: net.op("Shape", net.op("Relu", "x"), start=1, end=-1), ["seq"]
    ),
    "Size": Row(lambda net, s: net.op("Size", "x"), "12*batch*seq"),
    "Gather": Row(lambda net, s: net.op("Gather", s, [2, 0, -2]), [12, "batch", "seq"]),
    "Slice": Row(lambda net, s: net.op("Slice", s, [1], [1 << 40]), ["seq", 12]),
    "Slice turned round": Row(
        lambda net, s: net.op("Slice", s, [-1], [-(1 << 63) + 1], [0], [-1]),
        [12, "seq", "batch"],
    ),
    "Concat": Row(
        lambda net, s: net.op("Concat", s, [5], s, axis=0),
        ["batch", "seq", 12, 5, "batch", "seq", 12],
    ),
    "Concat with what is unknown": Row(
        lambda net, s: net.op("Concat", s, net.input("n", 2, dtype=INT), axis=0),
        ["batch", "seq", 12, None, None],
    ),
    "Split": Row(lambda net, s: net.op("Split", s, [1, 2], axis=0, outputs=2)[1], ["seq", 12]),
    "Unsqueeze": Row(lambda net, s: net.op("Unsqueeze", _batch(net, s), [0]), ["batch"]),
    "Squeeze": Row(lambda net, s: net.op("Squeeze", net.op("Slice", s, [0], [1])), "batch"),
    "Squeeze of an axis": Row(
        lambda net, s: net.op("Squeeze", net.op("Unsqueeze", s, [0]), [0]), ["batch", "seq", 12]
    ),
    "Reshape": Row(lambda net, s: net.op("Reshape", s, [-1, 1]), [["batch"], ["seq"], [12]]),
    "Transpose": Row(
        lambda net, s: net.op("Transpose", net.op("Reshape", s, [3, 1])), [["batch", "seq", 12]]
    ),
    "pads, last axis first": Row(
        lambda net, s: net.op(
            "Reshape",
            net.op(
                "Transpose",
                net.op(
                    "Slice",
                    net.op("Reshape", net.op("Concat", s, [5], axis=0), [-1, 2]),
                    [-1],
                    [-(1 << 63) + 1],
                    [0],
                    [-1],
                ),
                perm=[1, 0],
            ),
            [-1],
        ),
        [12, "batch", 5, "seq"],
    ),
    "Expand": Row(lambda net, s: net.op("Expand", _batch(net, s), [2]), ["batch", "batch"]),
    "Tile": Row(
        lambda net, s: net.op("Tile", net.op("Slice", s, [1], [3]), [2]), ["seq", 12, "seq", 12]
    ),
    "ConstantOfShape": Row(
        lambda net, s: net.op("ConstantOfShape", net.op("Shape", s)), [0.0, 0.0, 0.0]
    ),
    "ConstantOfShape, open": Row(lambda net, s: net.op("ConstantOfShape", s), None),
    "Range": Row(lambda net, s: net.op("Range", INT(0), _at(net, s, 2), INT(5)), [0, 5, 10]),
    "Range down": Row(lambda net, s: net.op("Range", _at(net, s, 2), INT(0), INT(-5)), [12, 7, 2]),
    "Range open": Row(lambda net, s: net.op("Range", INT(0), _batch(net, s), INT(1)), None),
    "Cast": Row(lambda net, s: net.op("Cast", s, to=INT32), ["batch", "seq", 12]),
    "Cast to a float": Row(lambda net, s: net.op("Cast", s, to=FLOAT), [None, None, 12.0]),
    "Cast to a bool": Row(lambda net, s: net.op("Cast", s, to=BOOL), [None, None, True]),
    "Identity": Row(lambda net, s: net.op("Identity", s), ["batch", "seq", 12]),
    "ReduceProd": Row(lambda net, s: net.op("ReduceProd", s, keepdims=0), "12*batch*seq"),
    "ReduceSum": Row(lambda net, s: net.op("ReduceSum", s), ["batch + seq + 12"]),
    "ReduceProd of rows": Row(
        lambda net, s: net.op(
            "ReduceProd",
            net.op("Reshape", net.op("Concat", s, s, axis=0), [3, 2]),
            axes=[1],
            keepdims=0,
        ),
        ["batch*seq", "12*batch", "12*seq"],
    ),
    "ReduceMax": Row(lambda net, s: net.op("ReduceMax", net.op("Slice", s, [2], [3])), [12]),
    "ReduceMax open": Row(lambda net, s: net.op("ReduceMax", s), [None]),
}


def _as_float(net: Net, shape: str, index: int = 2) -> str:
    return net.op("Cast", _at(net, shape, index), to=FLOAT)


def _rounded(op: str) -> Callable[..., str]:
    """⌊12 / 5⌋ and the like, through floats and back."""

    def build(net: Net, shape: str) -> str:
        ratio = net.op("Div", _as_float(net, shape), np.float32(5))
        return net.op("Cast", net.op(op, ratio), to=INT64)

    return build


FLOATS = {
    "Floor": Row(_rounded("Floor"), 2),
    "Ceil": Row(_rounded("Ceil"), 3),
    "Round": Row(_rounded("Round"), 2),
    "Sqrt": Row(
        lambda net, s: net.op("Sqrt", net.op("Mul", _as_float(net, s), np.float32(12))), 12.0
    ),
    "scaled and cut": Row(
        lambda net, s: net.op("Cast", net.op("Mul", _as_float(net, s), np.float32(1.3)), to=INT64),
        15,
    ),
    "Pow, left to onnxruntime": Row(
        lambda net, s: net.op("Pow", _as_float(net, s), np.float32(-0.5)), None
    ),
    "an open size, which would be rounded": Row(
        lambda net, s: net.op("Floor", net.op("Div", _as_float(net, s, 0), np.float32(1))), None
    ),
    "by zero": Row(lambda net, s: net.op("Div", _as_float(net, s), np.float32(0)), None),
    "what does not fit": Row(
        lambda net, s: net.op("Cast", net.op("Mul", _as_float(net, s), np.float32(1e30)), to=INT64),
        None,
    ),
}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name)
        for table in (ARITHMETIC, COMPARISON, MOVEMENT, FLOATS)
        for name, row in table.items()
    ],
)
def test_value(row: Row) -> None:
    net = Net(row.opset)
    proto = net.proto(row.build(net, net.op("Shape", net.input("x", "batch", "seq", 12))))
    model, facts = found_in(proto)
    value = facts.value(model.graph.outputs[0])
    if value is None:
        assert row.expected is None
    else:
        found = np.empty(value.shape, object)
        found.reshape(-1)[:] = written(value.reshape(-1).tolist())
        assert found.tolist() == row.expected
    assert_true(proto)


def test_large_tensors_have_shapes_only() -> None:
    net = Net()
    x = net.input("x", "batch", MOST_VALUES + 1)
    size = net.op("Gather", net.op("Shape", x), INT(1))
    proto = net.proto(net.op("Range", INT(0), size, INT(1)))
    model, facts = found_in(proto)
    assert facts.value(model.graph.outputs[0]) is None
    assert facts.shape(model.graph.outputs[0]) == (MOST_VALUES + 1,)


def test_weights_are_not_read() -> None:
    """Only what shape arithmetic asks for is loaded, and nothing large."""
    net = Net()
    proto = net.proto(net.op("Add", net.input("x", "batch", 4), net.draw(4)))
    model, facts = found_in(proto)
    assert facts.values == {}
    assert facts.shape(model.graph.outputs[0]) is not None
