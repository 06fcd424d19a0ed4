"""The channel axis behind an op, against running it on channel numbers in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from building import Net, run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusewright.quantize.channel_axis import behind

SHAPE, C = (2, 6, 4, 5), 5
# (operator, further inputs, attributes); those that do not fit a drawn shape are passed over.
STEPS = [
    *[("Transpose", [], {"perm": list(p)}) for p in ((0, 2, 1, 3), (0, 3, 1, 2), (3, 0, 1, 2))],
    *[("Transpose", [], {"perm": list(p)}) for p in ((1, 2, 0), (0, 2, 1), (1, 0))],
    ("Transpose", [], {}),
    *[("Reshape", [list(s)], {}) for s in ((2, 24, 5), (48, 5), (2, 2, 3, 4, 5), (2, 6, 20))],
    *[("Reshape", [list(s)], {}) for s in ((-1, 3, 2, 4, 5), (2, -1, 4), (12, 4, 5, 1), (5, 48))],
    *[("Flatten", [], {"axis": axis}) for axis in (1, 2, 3)],
    ("Unsqueeze", [[1]], {}),
    ("Unsqueeze", [[-1]], {}),
    ("Squeeze", [[0]], {}),
    *[("Slice", [[1], [3], [axis]], {}) for axis in (0, 1, -1, -2)],
    ("Slice", [[0, 1], [1, 3]], {}),
    *[("Gather", [np.array([1, 0, 1])], {"axis": axis}) for axis in (0, 1, -1, -2)],
    *[("Gather", [np.array(1)], {"axis": axis}) for axis in (0, 1, 2, -1)],
    ("Gather", [np.array([[0, 1], [1, 0]])], {"axis": -1}),
    ("Pad", [[0, 1, 0, 0, 0, 1, 2, 0]], {}),
    ("Pad", [[0, 0, 0, 1, 0, 0, 0, 0]], {}),
    ("Pad", [[0, 1, 0, 0, 1, 0]], {"mode": "edge"}),
    ("Expand", [[3, 1, 1, 1, 1]], {}),
    ("Identity", [], {}),
    ("GlobalAveragePool", [], {}),
    ("ReduceMean", [], {"axes": [1], "keepdims": 1}),
    ("ReduceMean", [], {"axes": [-1, -2], "keepdims": 0}),
    ("ReduceMean", [], {"axes": [1, 2], "keepdims": 0}),
]


def _chain(net: Net, x: str, steps: list[int]) -> str | None:
    for step in steps:
        op, inputs, attrs = STEPS[step]
        x = net.op(op, x, *inputs, **attrs)
    return x


def _verdict(nodes: list[gs.Node], axis: int, opset: int) -> int | str:
    for node in nodes:
        found = behind(node, axis, C, opset)
        if isinstance(found, str):
            return found
        axis = found
    return axis


def _numbers(axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """Channel j holds j + 1 and a seeded fraction is nowhere: 0 is left for padding."""
    numbers = np.arange(1, C + 1, dtype=np.float32)
    return np.broadcast_to(numbers.reshape(-1, *[1] * (axis - 1)), shape)


@given(st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=4))
@example([22, 22, 22, 41])
@settings(max_examples=150, deadline=None)
def test_every_channel_arrives_where_it_is_said(steps: list[int]) -> None:
    net = Net(opset=13)
    x = net.input("x", *SHAPE)
    try:
        proto = net.proto(_chain(net, x, steps))
        (moved,) = run(proto, {"x": np.ascontiguousarray(_numbers(1, SHAPE))})
        model = net.model(proto.graph.output[0].name)
    except Exception:  # noqa: BLE001 - a chain that does not fit its shapes: no statement
        return
    axis = _verdict(model.graph.nodes, 1, 13)
    if isinstance(axis, int):
        expected = _numbers(axis, moved.shape)
        assert moved.shape[-axis] == C
        if not np.any(moved):  # the mean of what three slices have left nothing of
            return
        # A mean over padding scales every channel of a place alike; padding itself is 0.
        share = moved / expected
        assert np.all((share >= 0) & (share <= 1 + 1e-6))
        np.testing.assert_allclose(
            share,
            share.max(axis=-axis, keepdims=True) * np.ones(C).reshape(-1, *[1] * (axis - 1)),
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("steps", "axis"),
    [
        ([("Transpose", [], {"perm": [0, 3, 1, 2]})], 3),
        ([("Transpose", [], {})], 4),
        ([("Reshape", [[-1, 3, 2, 2, 2, 5]], {})], 1),
        ([("Transpose", [], {"perm": [0, 3, 1, 2]}), ("Reshape", [[2, 5, 24]], {})], 2),
        ([("Transpose", [], {"perm": [0, 3, 1, 2]}), ("GlobalAveragePool", [], {})], 3),
        ([("Gather", [np.array(0)], {"axis": 1})], 1),
        ([("Transpose", [], {"perm": [0, 3, 1, 2]}), ("Gather", [np.array(0)], {"axis": 3})], 2),
        ([("Unsqueeze", [[-1]], {})], 2),
        ([("Slice", [[1], [3], [1]], {})], 1),
        ([("Pad", [[0, 1, 0, 0, 0, 1, 2, 0]], {})], 1),
        ([("Pad", [[0, 1, 0, 0, 0, 1, 2, 0]], {"mode": "reflect"})], 1),
        ([("ReduceMean", [], {"axes": [1, 2], "keepdims": 0})], 1),
        ([("Expand", [[3, 1, 1, 1, 1]], {})], 1),
        ([("Reshape", [[2, 6, 20]], {})], "does not keep the channels whole"),
        ([("Slice", [[1], [3], [-1]], {})], "does not keep the channels whole"),
        ([("Gather", [np.array([1, 0])], {"axis": -1})], "does not keep the channels whole"),
        ([("GlobalAveragePool", [], {})], "does not keep the channels whole"),
        ([("ReduceMean", [], {"axes": [-1]})], "does not keep the channels whole"),
        ([("Pad", [[0, 1, 0, 0, 0, 1, 2, 0], 1.0], {})], "pads with another value than 0"),
        ([("Softmax", [], {})], "is no op that only moves elements"),
    ],
)
def test_one_by_one(steps: list[tuple], axis: int | str) -> None:
    net = Net(opset=13)
    x = net.input("x", *SHAPE)
    for op, inputs, attrs in steps:
        x = net.op(op, x, *inputs, **attrs)
    assert _verdict(net.model(x).graph.nodes, 1, 13) == axis


def test_dynamic_leading_dimensions_do_not_matter() -> None:
    net = Net()
    x = net.op("Reshape", net.input("x", "batch", "rows", "columns", C), [0, -1, C])
    assert _verdict(net.model(x).graph.nodes, 1, 17) == 1


def test_a_dynamic_dimension_behind_the_channels_is_named() -> None:
    net = Net()
    x = net.op("Transpose", net.input("x", "batch", "rows", C), perm=[0, 2, 1])
    x = net.op("Reshape", x, [-1, C, 6])
    assert _verdict(net.model(x).graph.nodes, 1, 17) == "has shapes or axes that are not known"
