"""Folding of shape arithmetic: what must be folded, what must not, and that results stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from building import Net, as_model, ops
from shape_nets import END, assert_same, dim_of, shape_of

from fusewright.graph.convert import to_proto
from fusewright.graph.dims import Dim
from fusewright.graph.fold_shapes import computes_shapes, fold_shapes, stored_target

INT = np.int64
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


def _windows(net: Net) -> str:
    x = _images(net)
    parts = [dim_of(net, x, 0), 2, 4, 2, 4, dim_of(net, x, 3)]
    y = net.op("Transpose", net.op("Reshape", x, shape_of(net, *parts)), perm=[0, 1, 3, 2, 4, 5])
    count = net.op("Mul", dim_of(net, y, 0), net.op("Mul", dim_of(net, y, 1), dim_of(net, y, 2)))
    return net.op("Reshape", y, shape_of(net, count, 16, 12))


def _heads(net: Net, **attributes: int) -> str:
    x = _tokens(net)
    target = shape_of(net, dim_of(net, x, 0), dim_of(net, x, 1), 3, 4)
    return net.op("Transpose", net.op("Reshape", x, target, **attributes), perm=[0, 2, 1, 3])


def _class_token(net: Net) -> str:
    """torch's expand: sizes of -1 are replaced by 1 in a shape that has none."""
    x = _tokens(net)
    target = shape_of(net, dim_of(net, x, 0), 1, 12)
    ones = net.op("ConstantOfShape", net.op("Shape", target), value=_one(INT))
    target = net.op("Where", net.op("Equal", target, [-1]), ones, target)
    return net.op("Concat", net.op("Expand", net.draw(1, 1, 12), target), x, axis=1)


def _batch_of(net: Net) -> str:
    """torch's expand(batch, -1, -1): sizes of -1 stand for the tensor's own, which are 1."""
    x = _tokens(net)
    target = shape_of(net, dim_of(net, x, 0), -1, -1)
    ones = net.op("ConstantOfShape", [3], value=_one(INT))
    target = net.op("Where", net.op("Equal", target, [-1]), ones, target)
    return net.op("Concat", net.op("Expand", net.draw(1, 1, 12), target), x, axis=1)


def _one(dtype: type) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.ones(1, dtype))


def _same_shape_twice(net: Net) -> str:
    x = _tokens(net)
    first = net.op("Expand", net.draw(1, 1, 12), shape_of(net, dim_of(net, x, 0), 1, 1))
    second = net.op("Expand", net.draw(1, 1, 12), shape_of(net, dim_of(net, x, 0), 1, 1))
    return net.op("Concat", first, second, axis=1)


def _scale(net: Net) -> str:
    """torch's 1/√√(head size), computed in the graph."""
    x = _tokens(net)
    size = net.op("Cast", net.op("Slice", net.op("Shape", x), [-1], END), to=1)
    return net.op("Mul", x, net.op("Div", 1.0, net.op("Sqrt", net.op("Sqrt", size))))


def _padded(net: Net) -> str:
    x = _images(net)
    rest = net.op("Mod", net.op("Sub", INT(5), net.op("Mod", dim_of(net, x, 1), [5])), [5])
    return net.op("Pad", x, shape_of(net, 0, 0, 0, 0, 0, rest, 0, 0))


def _normalized(net: Net) -> str:
    """torch's x / ‖x‖ in F.normalize: the length is expanded to x first."""
    x = _tokens(net)
    length = net.op("ReduceL2", x, axes=[-1])
    return net.op("Div", x, net.op("Expand", length, net.op("Shape", x)))


def _mask_of_nothing(net: Net, last: str = "Add") -> str:
    """transformers' mask of a ViT: expanded over the batch, chosen, and added to scores."""
    x = _images(net)
    target = shape_of(net, dim_of(net, x, 0), 1, 8, 12)
    kept = net.op("Expand", net.store(np.ones((1, 1, 8, 1), np.bool_), dtype=None), target)
    mask = net.op("Where", kept, 0.0, -1.0)
    return net.op(last, x, mask) if last == "Add" else net.op("Concat", x, mask, axis=1)


FOLDED = {
    "windows": Row(_windows, "Relu Reshape Transpose Reshape"),
    "heads, batch and sequence open": Row(_heads, "Relu Reshape Transpose"),
    "heads, allowzero": Row(lambda net: _heads(net, allowzero=1), "Relu Reshape Transpose"),
    "an open size solved": Row(
        lambda net: net.op("Reshape", x := _images(net), shape_of(net, -1, dim_of(net, x, 3))),
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
        lambda net: net.op("Exp", net.op("Slice", x := _images(net), [0], dim_of(net, x, 1), [1])),
        "Relu Exp",
    ),
    "Slice of everything that is open": Row(
        lambda net: net.op("Exp", net.op("Slice", x := _tokens(net), [0], dim_of(net, x, 1), [1])),
        "Relu Exp",
    ),
    "Transpose of nothing": Row(
        lambda net: net.op("Exp", net.op("Transpose", _tokens(net), perm=[0, 1, 2])), "Relu Exp"
    ),
    "a comparison that is certain": Row(
        lambda net: net.op("Where", net.op("Less", dim_of(net, x := _tokens(net), 1), [0]), 1.0, x),
        "Relu Where",
    ),
    "a Split of a shape": Row(
        lambda net: net.op(
            "Reshape",
            x := _images(net),
            shape_of(net, -1, net.op("Split", net.op("Shape", x), [3, 1], axis=0, outputs=2)[1]),
        ),
        "Relu Reshape",
    ),
}
LEFT = {
    "two open sizes that change places": Row(
        lambda net: net.op(
            "Reshape", x := _tokens(net), shape_of(net, dim_of(net, x, 1), dim_of(net, x, 0), 12)
        ),
        "Relu Shape Gather Unsqueeze Gather Unsqueeze Concat Reshape",
    ),
    "an open size in another place, and one more": Row(
        lambda net: net.op(
            "Reshape", x := _tokens(net), shape_of(net, 12, dim_of(net, x, 0), dim_of(net, x, 1))
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
            shape_of(net, net.op("Div", dim_of(net, _tokens(net), 1), [2]), 12),
        )
    ),
    "padding of an open size": Row(
        lambda net: net.op(
            "Pad",
            x := _tokens(net),
            shape_of(net, 0, 0, 0, 0, net.op("Mod", dim_of(net, x, 1), [4]), 0),
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
        lambda net: net.op("Where", net.op("Equal", dim_of(net, x := _tokens(net), 1), [5]), 1.0, x)
    ),
    "a Reshape to the same that is an output": Row(
        lambda net: net.op("Reshape", net.input("x", "batch", 12), [0, 12])
    ),
}


@pytest.mark.parametrize("row", FOLDED.values(), ids=FOLDED)
def test_is_folded(row: Row) -> None:
    proto = row.proto()
    model = as_model(proto)
    assert fold_shapes(model) > 0
    assert ops(model) == row.expected
    assert_same(proto, model)
    onnx.checker.check_model(to_proto(model.graph), full_check=True)
    assert fold_shapes(model) == 0, "folding twice is not folding once"


@pytest.mark.parametrize("row", LEFT.values(), ids=LEFT)
def test_is_left_alone(row: Row) -> None:
    proto = row.proto()
    model = as_model(proto)
    before = ops(model)
    fold_shapes(model)
    assert ops(model) == (row.expected or before)
    assert_same(proto, model)


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
    y = net.op("Reshape", net.op("Add", x, constant), shape_of(net, dim_of(net, x, 0), 2, 2))
    proto = net.proto(y)
    proto.graph.initializer.append(half)
    model = as_model(proto)
    assert fold_shapes(model) > 0
    assert ops(model) == "Cast Add Reshape"
    assert_same(proto, model)


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
    target = shape_of(net, -1, dim_of(net, x, 3))
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
    assert_same(proto, model)


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
