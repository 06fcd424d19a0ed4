"""Folding of shape arithmetic: what must be folded, what must not, and that results stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from building import Net, as_model, assert_equal, ops
from hypothesis import given, settings
from hypothesis import strategies as st
from propagating import SIZES, assert_true, feed_of, found_in

from fusewright.graph.convert import to_proto
from fusewright.graph.dims import Dim, Size, quotient
from fusewright.graph.fold_shapes import computes_shapes, fold_shapes, stored_target
from fusewright.graph.model import Model

INT = np.int64
END = [(1 << 63) - 1]
B, S = Dim.symbol("batch"), Dim.symbol("seq")


@dataclass(frozen=True)
class Row:
    """A graph, and its operators behind folding; None: the same as before."""

    build: Callable[[Net], str | tuple[str, ...]]
    expected: str | None = None
    opset: int = 17

    def proto(self) -> onnx.ModelProto:
        net = Net(self.opset)
        outputs = self.build(net)
        return net.proto(*((outputs,) if isinstance(outputs, str) else outputs))


def _tokens(net: Net) -> str:
    return net.op("Relu", net.input("x", "batch", "seq", 12))


def _images(net: Net) -> str:
    return net.op("Relu", net.input("x", "batch", 8, 8, 12))


def _size(net: Net, x: str, axis: int) -> str:
    return net.op("Unsqueeze", net.op("Gather", net.op("Shape", x), INT(axis)), [0])


def _shape(net: Net, *parts: str | int) -> str:
    listed = [[part] if isinstance(part, int) else part for part in parts]
    return net.op("Concat", *listed, axis=0)


def _windows(net: Net) -> str:
    x = _images(net)
    parts = [_size(net, x, 0), 2, 4, 2, 4, _size(net, x, 3)]
    y = net.op("Transpose", net.op("Reshape", x, _shape(net, *parts)), perm=[0, 1, 3, 2, 4, 5])
    count = net.op("Mul", _size(net, y, 0), net.op("Mul", _size(net, y, 1), _size(net, y, 2)))
    return net.op("Reshape", y, _shape(net, count, 16, 12))


def _heads(net: Net, **attributes: int) -> str:
    x = _tokens(net)
    target = _shape(net, _size(net, x, 0), _size(net, x, 1), 3, 4)
    return net.op("Transpose", net.op("Reshape", x, target, **attributes), perm=[0, 2, 1, 3])


def _class_token(net: Net) -> str:
    """torch's expand: sizes of -1 are replaced by 1 in a shape that has none."""
    x = _tokens(net)
    target = _shape(net, _size(net, x, 0), 1, 12)
    ones = net.op("ConstantOfShape", net.op("Shape", target), value=_one(INT))
    target = net.op("Where", net.op("Equal", target, [-1]), ones, target)
    return net.op("Concat", net.op("Expand", net.draw(1, 1, 12), target), x, axis=1)


def _batch_of(net: Net) -> str:
    """torch's expand(batch, -1, -1): sizes of -1 stand for the tensor's own, which are 1."""
    x = _tokens(net)
    target = _shape(net, _size(net, x, 0), -1, -1)
    ones = net.op("ConstantOfShape", [3], value=_one(INT))
    target = net.op("Where", net.op("Equal", target, [-1]), ones, target)
    return net.op("Concat", net.op("Expand", net.draw(1, 1, 12), target), x, axis=1)


def _one(dtype: type) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.ones(1, dtype))


def _same_shape_twice(net: Net) -> str:
    x = _tokens(net)
    first = net.op("Expand", net.draw(1, 1, 12), _shape(net, _size(net, x, 0), 1, 1))
    second = net.op("Expand", net.draw(1, 1, 12), _shape(net, _size(net, x, 0), 1, 1))
    return net.op("Concat", first, second, axis=1)


def _scale(net: Net) -> str:
    """torch's 1/√√(head size), computed in the graph."""
    x = _tokens(net)
    size = net.op("Cast", net.op("Slice", net.op("Shape", x), [-1], END), to=1)
    return net.op("Mul", x, net.op("Div", 1.0, net.op("Sqrt", net.op("Sqrt", size))))


def _padded(net: Net) -> str:
    x = _images(net)
    rest = net.op("Mod", net.op("Sub", INT(5), net.op("Mod", _size(net, x, 1), [5])), [5])
    return net.op("Pad", x, _shape(net, 0, 0, 0, 0, 0, rest, 0, 0))


def _normalized(net: Net) -> str:
    """torch's x / ‖x‖ in F.normalize: the length is expanded to x first."""
    x = _tokens(net)
    length = net.op("ReduceL2", x, axes=[-1])
    return net.op("Div", x, net.op("Expand", length, net.op("Shape", x)))


def _mask_of_nothing(net: Net, last: str = "Add") -> str:
    """transformers' mask of a ViT: expanded over the batch, chosen, and added to scores."""
    x = _images(net)
    target = _shape(net, _size(net, x, 0), 1, 8, 12)
    kept = net.op("Expand", net.store(np.ones((1, 1, 8, 1), np.bool_), dtype=None), target)
    mask = net.op("Where", kept, 0.0, -1.0)
    return net.op(last, x, mask) if last == "Add" else net.op("Concat", x, mask, axis=1)


FOLDED = {
    "windows": Row(_windows, "Relu Reshape Transpose Reshape"),
    "heads, batch and sequence open": Row(_heads, "Relu Reshape Transpose"),
    "heads, allowzero": Row(lambda net: _heads(net, allowzero=1), "Relu Reshape Transpose"),
    "an open size solved": Row(
        lambda net: net.op("Reshape", x := _images(net), _shape(net, -1, _size(net, x, 3))),
        "Relu Reshape",
    ),
    "scale of attention": Row(_scale, "Relu Cast Sqrt Sqrt Div Mul"),
    "padding to a multiple": Row(_padded, "Relu Pad"),
    "class token": Row(_class_token, "Relu Shape Gather Unsqueeze Concat Expand Concat"),
    "class token, sizes left out": Row(
        _batch_of, "Relu Shape Gather Unsqueeze Concat Expand Concat"
    ),
    "the same shape twice": Row(
        _same_shape_twice, "Relu Shape Gather Unsqueeze Concat Expand Expand Concat"
    ),
    "Expand that Div does": Row(_normalized, "Relu ReduceL2 Div"),
    "Expand that the Add behind Where does": Row(_mask_of_nothing, "Relu Where Add"),
    "Reshape to the same": Row(
        lambda net: net.op("Exp", net.op("Reshape", x := _tokens(net), net.op("Shape", x))),
        "Relu Exp",
    ),
    "Expand to the same": Row(
        lambda net: net.op("Exp", net.op("Expand", x := _tokens(net), net.op("Shape", x))),
        "Relu Exp",
    ),
    "Slice of everything": Row(
        lambda net: net.op("Exp", net.op("Slice", x := _images(net), [0], _size(net, x, 1), [1])),
        "Relu Exp",
    ),
    "Slice of everything that is open": Row(
        lambda net: net.op("Exp", net.op("Slice", x := _tokens(net), [0], _size(net, x, 1), [1])),
        "Relu Exp",
    ),
    "Transpose of nothing": Row(
        lambda net: net.op("Exp", net.op("Transpose", _tokens(net), perm=[0, 1, 2])), "Relu Exp"
    ),
    "a comparison that is certain": Row(
        lambda net: net.op("Where", net.op("Less", _size(net, x := _tokens(net), 1), [0]), 1.0, x),
        "Relu Where",
    ),
    "a Split of a shape": Row(
        lambda net: net.op(
            "Reshape",
            x := _images(net),
            _shape(net, -1, net.op("Split", net.op("Shape", x), [3, 1], axis=0, outputs=2)[1]),
        ),
        "Relu Reshape",
    ),
}
LEFT = {
    "two open sizes that change places": Row(
        lambda net: net.op(
            "Reshape", x := _tokens(net), _shape(net, _size(net, x, 1), _size(net, x, 0), 12)
        ),
        "Relu Shape Gather Unsqueeze Gather Unsqueeze Concat Reshape",
    ),
    "an open size in another place, and one more": Row(
        lambda net: net.op(
            "Reshape", x := _tokens(net), _shape(net, 12, _size(net, x, 0), _size(net, x, 1))
        ),
        "Relu Shape Gather Unsqueeze Gather Unsqueeze Concat Reshape",
    ),
    "a target that is data": Row(
        lambda net: net.op(
            "Reshape",
            _tokens(net),
            net.op("Where", net.op("IsNaN", net.input("n", 2)), [12, -1], [-1, 12]),
        )
    ),
    "a size that is divided with a rest": Row(
        lambda net: net.op(
            "Expand",
            net.draw(1, 12),
            _shape(net, net.op("Div", _size(net, _tokens(net), 1), [2]), 12),
        )
    ),
    "padding of an open size": Row(
        lambda net: net.op(
            "Pad",
            x := _tokens(net),
            _shape(net, 0, 0, 0, 0, net.op("Mod", _size(net, x, 1), [4]), 0),
        )
    ),
    "a Slice turned round": Row(
        lambda net: net.op("Slice", _tokens(net), [-1], [-(1 << 63) + 1], [2], [-1])
    ),
    "a Slice of all but one": Row(lambda net: net.op("Slice", _tokens(net), [1], END, [1])),
    "an Expand that nothing else does": Row(
        lambda net: net.op(
            "Add", net.draw(12), net.op("Expand", net.draw(1, 1, 12), net.op("Shape", _tokens(net)))
        )
    ),
    "an Expand that is read otherwise": Row(
        lambda net: net.op(
            "Exp", net.op("Expand", net.draw(1, 1, 12), net.op("Shape", _tokens(net)))
        )
    ),
    "an Expand that is a Where's to the end": Row(
        lambda net: _mask_of_nothing(net, "Concat"),
        "Relu Shape Gather Unsqueeze Concat Expand Where Concat",
    ),
    "a Transpose": Row(lambda net: net.op("Transpose", _tokens(net), perm=[0, 2, 1])),
    "a shape that is an output": Row(
        lambda net: (x := _images(net), net.op("Slice", net.op("Shape", x), [1], END))
    ),
    "a comparison that is not certain": Row(
        lambda net: net.op("Where", net.op("Equal", _size(net, x := _tokens(net), 1), [5]), 1.0, x)
    ),
    "a Reshape to the same that is an output": Row(
        lambda net: net.op("Reshape", net.input("x", "batch", 12), [0, 12])
    ),
}


def _assert_same(
    proto: onnx.ModelProto, model: Model, at: Sequence[Mapping[str, int]] = SIZES
) -> None:
    for sizes in at:
        assert_equal(proto, model, feed_of(proto, sizes, seed=1))


@pytest.mark.parametrize("row", FOLDED.values(), ids=FOLDED)
def test_is_folded(row: Row) -> None:
    proto = row.proto()
    model = as_model(proto)
    assert fold_shapes(model) > 0
    assert ops(model) == row.expected
    _assert_same(proto, model)
    onnx.checker.check_model(to_proto(model.graph), full_check=True)
    assert fold_shapes(model) == 0, "folding twice is not folding once"


@pytest.mark.parametrize("row", LEFT.values(), ids=LEFT)
def test_is_left_alone(row: Row) -> None:
    proto = row.proto()
    model = as_model(proto)
    before = ops(model)
    fold_shapes(model)
    assert ops(model) == (row.expected or before)
    _assert_same(proto, model)


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        ((B, 56, 56, 96), (64 * B, 49, 96), [-1, 49, 96]),
        ((B, S, 768), (B, S, 12, 64), [0, -1, 12, 64]),
        ((S, 768), (S, 12, 64), [-1, 12, 64]),
        ((B, S, 768), (B, 12, S, 64), [0, 12, -1, 64]),
        ((B, S, S), (B, S, S, 1), [0, 0, -1, 1]),
        ((B, S, 768), (S, B, 768), None),
        ((B, S, 768), (None, S, 768), [-1, 0, 768]),
        ((B, None, 768), (B, None, 12, 64), [0, -1, 12, 64]),
        ((B, None, 768), (None, None, 768), None),
        ((None, None), (None, None), None),
        ((B, S), (None,), [-1]),
        (None, (B, 3), [-1, 3]),
        (None, (B, S), None),
        ((B, 0), (B, 0, 3), None),
        ((2, 3), (3, 2), [3, 2]),
    ],
    ids=str,
)
def test_stored_targets(before: Sequence[object], after: Sequence[object], target: object) -> None:
    assert stored_target(before, after) == target  # type: ignore[arg-type]


def test_shapes_are_annotated() -> None:
    model = as_model(Row(_windows).proto())
    fold_shapes(model)
    shapes = [node.outputs[0].shape for node in model.graph.nodes]
    declared = model.graph.outputs[0].shape
    windows = ["batch", 2, 2, 4, 4, 12]
    assert shapes == [["batch", 8, 8, 12], ["batch", 2, 4, 2, 4, 12], windows, declared]


def test_nothing_to_do_without_a_shape() -> None:
    net = Net()
    assert not computes_shapes(net.proto(net.op("Reshape", _tokens(net), [0, 0, 3, 4])))
    assert computes_shapes(Row(_windows).proto())


def test_types_that_numpy_lacks_say_nothing() -> None:
    net = Net()
    x = net.input("x", "batch", 4)
    half = onnx.helper.make_tensor("half", onnx.TensorProto.BFLOAT16, [4], [1.0, 2.0, 3.0, 4.0])
    constant = net.op("Cast", "half", to=1)
    y = net.op("Reshape", net.op("Add", x, constant), _shape(net, _size(net, x, 0), 2, 2))
    proto = net.proto(y)
    proto.graph.initializer.append(half)
    model = as_model(proto)
    assert fold_shapes(model) > 0
    assert ops(model) == "Cast Add Reshape"
    _assert_same(proto, model)


def test_frozen_nodes_and_what_they_read_stay() -> None:
    proto = Row(_windows).proto()
    model = as_model(proto)
    before = ops(model)
    model.frozen = frozenset(node.name for node in model.graph.nodes if node.op == "Reshape")
    fold_shapes(model)
    assert [n.op for n in model.graph.nodes].count("Concat") == before.split().count("Concat")
    assert all(n.inputs[1].inputs for n in model.graph.nodes if n.op == "Reshape")


def test_a_branch_reads_what_became_a_constant() -> None:
    net = Net()
    x = _images(net)
    target = _shape(net, -1, _size(net, x, 3))
    inner = onnx.helper.make_node("Reshape", [x, target], ["inner"])
    other = onnx.helper.make_node("Flatten", [x], ["other"], axis=3)
    kind = onnx.helper.make_tensor_value_info("inner", 1, None)
    branches = [
        onnx.helper.make_graph([node], f"branch_{node.output[0]}", [],
                               [onnx.ValueInfoProto(name=node.output[0], type=kind.type)])
        for node in (inner, other)
    ]  # fmt: skip
    condition = net.op("Greater", net.op("ReduceMax", x, keepdims=0), 0.5)
    result = net.op("If", condition, then_branch=branches[0], else_branch=branches[1])
    proto = net.proto(net.op("Relu", result))
    model = as_model(proto)
    assert fold_shapes(model) > 0
    assert ops(model) == "Relu ReduceMax Greater If Relu"
    _assert_same(proto, model)


def test_a_branch_that_is_certain_stays_one() -> None:
    """Silero's decoder asks whether its state, of two layers, has any."""
    net = Net()
    x = net.op("Relu", net.input("x", 2, "batch", 4))
    count = net.op("Cast", net.op("Gather", net.op("Shape", x), INT(0)), to=9)
    kind = onnx.helper.make_tensor_value_info("branch", 1, None).type
    branches = [
        onnx.helper.make_graph(
            [onnx.helper.make_node(op, [x], [f"{op}_y"])],
            op,
            [],
            [onnx.ValueInfoProto(name=f"{op}_y", type=kind)],
        )
        for op in ("Sin", "Cos")
    ]
    result = net.op("If", count, then_branch=branches[0], else_branch=branches[1])
    model = as_model(net.proto(net.op("Relu", result)))
    before = ops(model)
    fold_shapes(model)
    assert ops(model) == before == "Relu Shape Gather Cast If Relu"


class _Drawn:
    """A graph of layout operators with computed shapes, and the shape it must have."""

    def __init__(self, data: st.DataObject) -> None:
        self.data, self.net = data, Net()
        self.x = self.net.op("Sin", self.net.input("x", "batch", "seq", 12))
        self.shape: list[Size] = [B, S, 12]

    def axis(self) -> int:
        return int(self.data.draw(st.integers(0, len(self.shape) - 1)))

    def _reshape(self, axis: int, parts: list[str | int], shape: list[Size], over: int = 1) -> None:
        """Puts `parts` in the place of `over` axes."""
        sizes = [_size(self.net, self.x, i) for i in range(len(self.shape))]
        target = _shape(self.net, *sizes[:axis], *parts, *sizes[axis + over :])
        self.x = self.net.op("Reshape", self.x, target)
        self.shape[axis : axis + over] = shape

    def transpose(self) -> None:
        perm = self.data.draw(st.permutations(range(len(self.shape))))
        self.x = self.net.op("Transpose", self.x, perm=perm)
        self.shape = [self.shape[i] for i in perm]

    def merge(self) -> None:
        if len(self.shape) > 1:
            axis = self.axis() % (len(self.shape) - 1)
            sizes = [_size(self.net, self.x, axis + i) for i in range(2)]
            joined = self.data.draw(st.sampled_from([-1, self.net.op("Mul", *sizes)]))
            self._reshape(axis, [joined], [self.shape[axis] * self.shape[axis + 1]], over=2)

    def cut(self) -> None:
        axis, by = self.axis(), self.data.draw(st.sampled_from([2, 3, 4]))
        whole = quotient(self.shape[axis], by)
        if whole is not None and len(self.shape) < 6:
            rest = self.net.op("Div", _size(self.net, self.x, axis), [by])
            self._reshape(axis, [rest, by], [whole, by])

    def double(self) -> None:
        axis = self.axis()
        self.x = self.net.op("Concat", self.x, self.net.op("Cos", self.x), axis=axis)
        self.shape[axis] = self.shape[axis] * 2

    def tail(self) -> None:
        """The second of two copies."""
        axis = self.axis()
        both = self.net.op("Concat", self.net.op("Cos", self.x), self.x, axis=axis)
        self.x = self.net.op("Slice", both, _size(self.net, self.x, axis), END, [axis])

    def pad(self) -> None:
        axis, amounts = self.axis(), [0] * 2 * len(self.shape)
        amounts[axis] = 1
        self.x = self.net.op("Pad", self.x, amounts)
        self.shape[axis] = self.shape[axis] + 1

    def same(self) -> None:
        op = self.data.draw(st.sampled_from(["Reshape", "Expand"]))
        self.x = self.net.op(op, self.x, self.net.op("Shape", self.x))

    def scale(self) -> None:
        size = self.net.op("Cast", _size(self.net, self.x, self.axis()), to=1)
        self.x = self.net.op("Div", self.x, size)

    def widen(self) -> None:
        """A mean that is expanded to what it is subtracted from."""
        mean = self.net.op("ReduceMean", self.x, axes=[self.axis()])
        wide = self.net.op("Expand", mean, self.net.op("Shape", self.x))
        self.x = self.net.op("Sub", self.x, wide)


STEPS = ("transpose", "merge", "cut", "double", "tail", "pad", "same", "scale", "widen")


SIZE = st.fixed_dictionaries({"batch": st.integers(1, 6), "seq": st.integers(1, 9)})


@settings(deadline=None, max_examples=40)
@given(st.data(), st.lists(SIZE, min_size=2, max_size=2))
def test_any_layout_is_known_and_keeps_its_results(
    data: st.DataObject, sizes: list[dict[str, int]]
) -> None:
    drawn = _Drawn(data)
    for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6)):
        getattr(drawn, step)()
    proto = drawn.net.proto(drawn.net.op("Cos", drawn.x))
    assert_true(proto, sizes)
    model, facts = found_in(proto)
    assert facts.shape(model.graph.outputs[0]) == tuple(drawn.shape)
    fold_shapes(model)
    _assert_same(proto, model, sizes)
