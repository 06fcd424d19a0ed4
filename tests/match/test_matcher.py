"""The pattern language, one feature at a time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from building import Net
from onnx import helper

from fusewright.graph.model import Model
from fusewright.match.matcher import Match, Matcher, Miss
from fusewright.match.pattern import (
    Pattern,
    const,
    maybe,
    number,
    one_of,
    op,
    optional,
    root_types,
    var,
)

X, Z = var("x"), var("z")


def _match(pattern: Pattern, model: Model, at: int = -1) -> tuple[Match | None, Miss | None]:
    matcher = Matcher("test", pattern, model.opset, model.graph.outputs)
    return matcher.at(model.graph.nodes[at]), matcher.miss


def _holds(pattern: Pattern, build, opset: int = 17) -> bool:
    net = Net(opset)
    outputs = build(net)
    match, miss = _match(pattern, net.model(*((outputs,) if isinstance(outputs, str) else outputs)))
    assert match is not None or miss is not None, "no match, and no reason"
    return match is not None


def _x(net: Net) -> str:
    return net.input("x", 2, 3)


def test_operands_of_commutative_operators_are_free() -> None:
    pattern = op("Add", op("Relu", X), Z)
    for swap in (False, True):

        def build(net: Net, swap: bool = swap) -> str:
            y, z = net.op("Relu", _x(net)), net.input("z", 2, 3)
            return net.op("Add", z, y) if swap else net.op("Add", y, z)

        assert _holds(pattern, build)


def test_operands_of_others_are_not() -> None:
    pattern = op("Sub", op("Relu", X), Z)
    assert _holds(pattern, lambda n: n.op("Sub", n.op("Relu", _x(n)), "x"))
    assert not _holds(pattern, lambda n: n.op("Sub", "x", n.op("Relu", _x(n))))


def test_nested_commutative_operators_try_every_order() -> None:
    pattern = op("Mul", op("Add", op("Relu", X), op("Neg", X)), op("Add", op("Exp", X), Z))

    def build(net: Net) -> str:
        x = _x(net)
        left = net.op("Add", net.op("Neg", x), net.op("Relu", x))
        return net.op("Mul", net.op("Add", net.input("z", 2, 3), net.op("Exp", x)), left)

    assert _holds(pattern, build)


@pytest.mark.parametrize("value", [0.5, [0.5], [[0.5]], np.float64(0.5), np.float16(0.5)])
def test_number_of_any_rank_and_type(value: object) -> None:
    def build(net: Net) -> str:
        dtype = value.dtype.type if isinstance(value, np.generic) else np.float32
        return net.op("Mul", net.input("x", 2, 3, dtype=dtype), value)

    assert _holds(op("Mul", X, number(0.5)), build)


@pytest.mark.parametrize("value", [0.51, -0.5, [0.5, 0.5], [], float("nan")])
def test_other_numbers(value: object) -> None:
    def build(net: Net) -> str:
        array = np.array(value, np.float32)
        return net.op("Mul", net.input("x", 2, 1), array)

    assert not _holds(op("Mul", X, number(0.5)), build)


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        (np.float16(2**0.5), True),
        (np.float16(1.416), False),
        (np.float32(np.float16(2**0.5)), True),
        (np.float32(1.4138), False),
    ],
)
def test_a_number_rounded_to_half(value: np.generic, holds: bool) -> None:
    """What a half file holds of it, also where that was read as float32."""

    def build(net: Net) -> str:
        return net.op("Mul", net.input("x", 2, 3, dtype=value.dtype.type), value)

    assert _holds(op("Mul", X, number(2**0.5)), build) == holds


def test_zero_is_exact() -> None:
    assert _holds(op("Add", X, number(0.0)), lambda n: n.op("Add", _x(n), 0.0))
    assert not _holds(op("Add", X, number(0.0)), lambda n: n.op("Add", _x(n), 1e-7))


def test_one_name_is_one_tensor() -> None:
    pattern = op("Add", op("Relu", X), X)
    assert _holds(pattern, lambda n: n.op("Add", n.op("Relu", _x(n)), "x"))
    assert not _holds(
        pattern, lambda n: n.op("Add", n.op("Relu", _x(n)), n.op("Neg", n.input("z", 2, 3)))
    )


def test_var_is_no_constant_and_const_is_stored() -> None:
    assert not _holds(op("Sub", X, Z), lambda n: n.op("Sub", _x(n), 1.0))
    assert not _holds(op("Sub", X, const("c")), lambda n: n.op("Sub", _x(n), n.input("z", 3)))
    assert _holds(op("Sub", X, const("c")), lambda n: n.op("Sub", _x(n), n.draw(3)))


def test_condition_on_a_constant() -> None:
    pattern = op("Sub", X, const("c", test=lambda t: len(t.shape) == 1, expected="a vector"))
    assert _holds(pattern, lambda n: n.op("Sub", _x(n), n.draw(3)))
    net = Net()
    _, miss = _match(pattern, net.model(net.op("Sub", _x(net), net.draw(1, 3))))
    assert str(miss) == "expected a vector, found a constant of shape [1, 3]"


@pytest.mark.parametrize("given", [0, 1, 2])
def test_optional_inputs(given: int) -> None:
    """Left out, omitted by an empty name, and there."""
    pattern = op("Clip", X, optional(const("low")), optional(const("high")))
    more = ([], [None, 1.0], [0.0, 1.0])[given]
    net = Net()
    match, _ = _match(pattern, net.model(net.op("Clip", _x(net), *more)))
    assert match is not None
    assert ("low" in match.tensors, "high" in match.tensors) == (given == 2, given > 0)


def test_more_inputs_than_the_pattern_has() -> None:
    pattern = op("Clip", X, optional(const("low")))
    assert _holds(pattern, lambda n: n.op("Clip", _x(n), 0.0, None))
    assert not _holds(pattern, lambda n: n.op("Clip", _x(n), 0.0, 1.0))


def test_first_alternative_comes_first() -> None:
    pattern = one_of(op("Relu", op("Neg", X, name="inner")), op("Relu", X))
    net = Net()
    model = net.model(net.op("Relu", net.op("Neg", _x(net))))
    match, _ = _match(pattern, model)
    assert match is not None
    assert set(match.named) == {"inner"}
    matcher = Matcher("test", pattern, 17, model.graph.outputs)
    assert [len(m.nodes) for m in matcher.all_at(model.graph.nodes[-1])] == [2, 1]


def test_node_that_may_be_missing() -> None:
    pattern = op("Relu", maybe("Neg", op("Exp", X)))
    assert _holds(pattern, lambda n: n.op("Relu", n.op("Neg", n.op("Exp", _x(n)))))
    assert _holds(pattern, lambda n: n.op("Relu", n.op("Exp", _x(n))))
    assert not _holds(pattern, lambda n: n.op("Relu", n.op("Abs", n.op("Exp", _x(n)))))


def test_attributes_and_their_defaults() -> None:
    slope = op("LeakyRelu", X, alpha=lambda found: abs(found - 0.01) < 1e-6)
    assert _holds(slope, lambda n: n.op("LeakyRelu", _x(n)))
    assert _holds(slope, lambda n: n.op("LeakyRelu", _x(n), alpha=0.01))
    assert not _holds(slope, lambda n: n.op("LeakyRelu", _x(n), alpha=0.2))
    net = Net()
    _, miss = _match(op("Flatten", X, axis=2), net.model(net.op("Flatten", _x(net))))
    assert str(miss) == "expected Flatten.axis = 2, found 1"


def test_default_of_the_models_opset() -> None:
    """Softmax's axis is 1 up to opset 12 and -1 from 13 on."""
    assert _holds(op("Softmax", X, axis=-1), lambda n: n.op("Softmax", _x(n)), 13)


def test_first_output_only() -> None:
    pattern = op("Relu", op("Split", X, optional(const())))

    def build(net: Net, which: int) -> tuple[str, str]:
        parts = net.op("Split", net.input("x", 2, 4), outputs=2, axis=1)
        return parts[1 - which], net.op("Relu", parts[which])

    assert not _holds(pattern, lambda n: build(n, 1))
    # The first is right, and the second leaks: it is an output of the model.
    assert not _holds(pattern, lambda n: build(n, 0))


def test_node_of_another_domain() -> None:
    assert not _holds(op("Relu", X), lambda n: n.op("Relu", _x(n), domain="com.microsoft"))
    assert _holds(
        op("Relu", X), lambda n: n.op("Relu", _x(n), domain="ai.onnx") and n.op("Relu", "x")
    )


def test_interior_value_may_not_leak() -> None:
    pattern = op("Relu", op("Neg", X))
    assert not _holds(pattern, lambda n: (n.op("Neg", _x(n), name="i"), n.op("Relu", "i_y")))
    assert not _holds(
        pattern, lambda n: (n.op("Exp", n.op("Neg", _x(n), name="i")), n.op("Relu", "i_y"))
    )


def test_what_the_root_writes_may_be_read_by_anyone() -> None:
    net = Net()
    model = net.model(net.op("Neg", _x(net), name="root"), net.op("Relu", "root_y"))
    match, _ = _match(op("Neg", X), model, at=0)
    assert match is not None


def test_interior_value_read_twice_inside_does_not_leak() -> None:
    pattern = op("Mul", op("Neg", X), op("Relu", op("Neg", X)))
    shared = op("Neg", X)
    assert _holds(
        op("Mul", shared, op("Relu", shared)),
        lambda n: n.op("Mul", n.op("Relu", n.op("Neg", _x(n), name="i")), "i_y"),
    )
    assert _holds(
        pattern, lambda n: n.op("Mul", n.op("Neg", _x(n)), n.op("Relu", n.op("Neg", "x")))
    )


def test_value_read_in_a_subgraph_leaks() -> None:
    def build(net: Net) -> tuple[str, str]:
        inner = net.op("Neg", _x(net), name="i")
        branches = []
        for kind in ("Exp", "Abs"):
            result = helper.make_tensor_value_info(f"{kind}_out", onnx.TensorProto.FLOAT, [2, 3])
            node = helper.make_node(kind, [inner], [f"{kind}_out"])
            branches.append(helper.make_graph([node], kind, [], [result]))
        flag = net.input("flag", dtype=np.bool_)
        chosen = net.op("If", flag, then_branch=branches[0], else_branch=branches[1])
        return chosen, net.op("Relu", inner)

    net = Net()
    model = net.model(*build(net))
    relu = next(i for i, node in enumerate(model.graph.nodes) if node.op == "Relu")
    match, miss = _match(op("Relu", op("Neg", X)), model, relu)
    assert match is None
    assert "used elsewhere" in str(miss)


def test_boundary_tensor_is_not_made_inside() -> None:
    pattern = op("Add", op("Relu", op("Neg", X)), Z)
    assert not _holds(
        pattern, lambda n: n.op("Add", n.op("Relu", n.op("Neg", _x(n), name="i")), "i_y")
    )


def test_one_pattern_in_two_places_is_one_value() -> None:
    shared = op("LeakyRelu", X)
    assert not _holds(
        op("Mul", shared, op("Sigmoid", shared)),
        lambda n: n.op(
            "Mul", n.op("LeakyRelu", _x(n)), n.op("Sigmoid", n.op("LeakyRelu", "x", alpha=0.5))
        ),
    )


def test_miss_is_the_deepest() -> None:
    pattern = one_of(op("Relu", op("Exp", X)), op("Relu", op("Neg", op("Abs", op("Exp", X)))))
    net = Net()
    model = net.model(net.op("Relu", net.op("Neg", net.op("Abs", net.op("Sin", _x(net))))))
    _, miss = _match(pattern, model)
    assert miss is not None
    assert (miss.pattern, miss.node, miss.depth) == ("test", model.graph.nodes[0].name, 3)
    assert str(miss) == "expected Exp, found Sin"


def test_miss_does_not_outlive_its_node() -> None:
    net = Net()
    model = net.model(net.op("Relu", net.op("Neg", _x(net))))
    matcher = Matcher("test", op("Relu", op("Neg", X)), 17, model.graph.outputs)
    assert matcher.at(model.graph.nodes[0]) is None
    assert matcher.miss is not None
    assert matcher.at(model.graph.nodes[1]) is not None
    assert matcher.miss is None


def test_root_types() -> None:
    assert root_types(op("Relu|Clip", X)) == {"Relu", "Clip"}
    assert root_types(one_of(op("Add", X, Z), op("Mul", X, Z))) == {"Add", "Mul"}
    assert root_types(maybe("Add", maybe("Mul", op("Conv", X, Z)), Z)) == {"Add", "Mul", "Conv"}
    assert root_types(X) == frozenset()


def test_match_reports_what_it_bound() -> None:
    net = Net()
    model = net.model(net.op("Relu", net.op("Gemm", _x(net), net.draw(3, 4, name="w"))))
    match, _ = _match(op("Relu", op("Gemm", X, const("w"), name="layer")), model)
    assert match is not None
    assert [node.op for node in match.nodes] == ["Relu", "Gemm"]
    assert match.root is match.nodes[0]
    assert match.output is model.graph.outputs[0]
    assert match.named["layer"].op == "Gemm"
    assert match.tensors["x"].name == "x"
