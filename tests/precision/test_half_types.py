"""Which slots of an operator can be half: read off its schema at the model's opset."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fusewright.graph.dtypes import onnx_type
from fusewright.precision.kinds import KINDS
from fusewright.precision.types import FLOAT, ElementTypes, Slots, slots_of

F32, I8, I64, BOOL = np.float32, np.int8, np.int64, np.bool_


def _slots(op: str, inputs: list, outputs: list, opset: int, kind: str, **attrs: object) -> Slots:
    reads = [
        gs.Variable(f"x{i}", t, [1]) if t else gs.Variable.empty() for i, t in enumerate(inputs)
    ]
    writes = [gs.Variable(f"y{i}", t, [1]) for i, t in enumerate(outputs)]
    if op in ("QuantizeLinear", "DequantizeLinear"):
        reads[1] = gs.Constant("scale", np.ones(1, np.float32))
    node = gs.Node(op, op, attrs, reads, writes, domain=attrs.pop("domain", None))
    graph = gs.Graph([node], reads[:1], writes, opset=opset)
    return slots_of(node, ElementTypes(graph), opset, KINDS[kind])


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "opset", "kind", "expected"),
    [
        ("MatMul", [F32, F32], [F32], 17, "fp16", Slots((0, 1), (0,))),
        ("Conv", [F32, F32, F32], [F32], 17, "fp16", Slots((0, 1, 2), (0,))),
        # bfloat16 came to Conv with opset 22.
        ("Conv", [F32, F32], [F32], 21, "bf16", Slots((), (), (0, 1), (0,))),
        ("Conv", [F32, F32], [F32], 22, "bf16", Slots((0, 1), (0,))),
        ("Resize", [F32, F32, F32], [F32], 19, "fp16", Slots((0,), (0,), (1, 2))),
        ("Resize", [F32, None, F32], [F32], 19, "fp16", Slots((0,), (0,), (2,))),
        ("Clip", [F32, F32, F32], [F32], 17, "fp16", Slots((0, 1, 2), (0,))),
        ("Pad", [F32, I64, F32], [F32], 17, "fp16", Slots((0, 2), (0,))),
        ("Where", [BOOL, F32, F32], [F32], 17, "fp16", Slots((1, 2), (0,))),
        ("Concat", [F32, F32, F32], [F32], 17, "fp16", Slots((0, 1, 2), (0,))),
        ("TopK", [F32, I64], [F32, I64], 17, "fp16", Slots((0,), (0,))),
        ("Range", [F32, F32, F32], [F32], 17, "fp16", Slots((), (), (0, 1, 2), (0,))),
        (
            "NonMaxSuppression",
            [F32, F32, I64, F32, F32],
            [I64],
            17,
            "fp16",
            Slots((), (), (0, 1, 3, 4)),
        ),
        ("Shape", [F32], [I64], 17, "fp16", Slots((0,))),
        ("CumSum", [F32, I64], [F32], 13, "fp16", Slots((), (), (0,), (0,))),
        ("CumSum", [F32, I64], [F32], 14, "fp16", Slots((0,), (0,))),
        # The mean and the deviation that LayerNormalization can give stay float32.
        (
            "LayerNormalization",
            [F32] * 3,
            [F32] * 3,
            17,
            "fp16",
            Slots((0, 1, 2), (0,), (), (1, 2)),
        ),
        ("QuantizeLinear", [F32, F32, I8], [I8], 19, "fp16", Slots((0,))),
        ("DequantizeLinear", [I8, F32, I8], [F32], 19, "fp16", Slots((), (0,))),
        ("DequantizeLinear", [I8, F32, I8], [F32], 17, "fp16", Slots((), (), (1,), (0,))),
        ("RandomNormalLike", [F32], [F32], 17, "fp16", Slots((), (), (0,), (0,))),
        ("SequenceConstruct", [F32, F32], [F32], 17, "fp16", Slots((), (), (0, 1), (0,))),
        ("NoSuchOp", [F32], [F32], 17, "fp16", Slots((), (), (0,), (0,))),
    ],
)
def test_slots(
    op: str, inputs: list, outputs: list, opset: int, kind: str, expected: Slots
) -> None:
    assert _slots(op, inputs, outputs, opset, kind) == expected


def test_a_custom_operator_stays_as_it_is() -> None:
    assert not _slots("Relu", [F32], [F32], 17, "fp16", domain="vendor").follows


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_what_a_kind_says_of_itself(kind: str) -> None:
    half = KINDS[kind]
    values = np.array([half.maximum, half.normal, half.subnormal, half.integers], np.float64)
    assert (half.round(values).astype(np.float64) == values).all()
    assert np.isinf(half.round(np.float64(half.maximum * 1.01)))
    assert float(half.round(np.float64(half.subnormal / 4))) == 0
    assert float(half.round(np.float64(half.integers + 1))) != half.integers + 1


def test_types_that_rewrites_left_open_are_told_from_schemas() -> None:
    x = gs.Variable("x", np.float32, [2])
    count = gs.Variable("count", np.int64, [2])
    open_ones = [gs.Variable(f"t{i}") for i in range(5)]
    nodes = [
        gs.Node("Relu", "a", {}, [x], [open_ones[0]]),
        gs.Node("Greater", "b", {}, [open_ones[0], x], [open_ones[1]]),
        gs.Node("Cast", "c", {"to": 1}, [count], [open_ones[2]]),
        gs.Node("Shape", "d", {}, [x], [open_ones[3]]),
        gs.Node("Odd", "e", {}, [x], [open_ones[4]], domain="vendor"),
    ]
    types = ElementTypes(gs.Graph(nodes, [x, count], open_ones, opset=17))
    found = [types.of(t) for t in open_ones]
    assert found == [FLOAT, onnx_type(np.bool_), FLOAT, onnx_type(np.int64), None]


def test_a_sequence_of_floats_is_no_float_tensor() -> None:
    x = gs.Variable("x", np.float32, [2, 3])
    parts = gs.Variable("parts", np.float32, type="sequence_type")
    node = gs.Node("SplitToSequence", "a", {"axis": 1}, [x], [parts])
    types = ElementTypes(gs.Graph([node], [x], [parts], opset=17))
    assert types.of(parts) is None
    assert slots_of(node, types, 17, KINDS["fp16"]) == Slots((), (), (0,))
