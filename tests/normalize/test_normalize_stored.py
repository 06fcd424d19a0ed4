"""What is computed from stored tensors, Reshapes and Transposes that say nothing, kept axes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from building import Net
from norms import mean
from rewriting import Row, assert_left_alone, assert_rewritten, by_rule, rewrite

from fusewright.graph.walk import values

FLOAT, FLOAT16, INT64 = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.INT64,
)


def _x(net: Net, *shape: int | str) -> str:
    return net.input("x", *(shape or ("n", 4, 5)))


WEIGHTS = {
    "MatMul(x, Transpose(W))": lambda n: n.op(
        "MatMul", _x(n), n.op("Transpose", n.draw(7, 5), perm=[1, 0])
    ),
    "Transpose by default": lambda n: n.op("MatMul", _x(n), n.op("Transpose", n.draw(7, 5))),
    "Cast from float16": lambda n: n.op(
        "MatMul", _x(n), n.op("Cast", n.draw(5, 7, dtype=np.float16), to=FLOAT)
    ),
    "Cast, Transpose, Identity": lambda n: n.op(
        "MatMul",
        _x(n),
        n.op(
            "Identity",
            n.op("Transpose", n.op("Cast", n.draw(7, 5, dtype=np.float16), to=FLOAT)),
        ),
    ),
    "Reshape": lambda n: n.op("MatMul", _x(n), n.op("Reshape", n.draw(5, 7, 1), [0, -1])),
    "Unsqueeze, Squeeze": lambda n: n.op(
        "MatMul", _x(n), n.op("Squeeze", n.op("Unsqueeze", n.draw(5, 7), [0, -1]), [0, 3])
    ),
    "Cast from integers": lambda n: n.op(
        "MatMul",
        _x(n),
        n.op("Cast", n.store(np.arange(35).reshape(5, 7), dtype=np.int64), to=FLOAT),
    ),
}
RESHAPES = {
    "to its own shape": Row(lambda n: n.op("Relu", n.op("Reshape", _x(n), [-1, 4, 5])), "Relu"),
    "to the shape of x": Row(
        lambda n: n.op("Neg", n.op("Reshape", n.op("Relu", _x(n)), n.op("Shape", "x"))), "Relu Neg"
    ),
    "that names an output": Row(lambda n: n.op("Reshape", n.op("Relu", _x(n)), [0, 0, 5]), "Relu"),
    "Transposes that cancel": Row(
        lambda n: n.op(
            "Relu", n.op("Transpose", n.op("Transpose", _x(n), perm=[1, 2, 0]), perm=[2, 0, 1])
        ),
        "Relu",
    ),
    "Transposes that do not": Row(
        lambda n: n.op(
            "Relu", n.op("Transpose", n.op("Transpose", _x(n), perm=[1, 2, 0]), perm=[1, 2, 0])
        ),
        "Transpose Relu",
    ),
    "Cast to its own type": Row(lambda n: n.op("Relu", n.op("Cast", _x(n), to=FLOAT)), "Relu"),
    "mean, Reshape": Row(
        lambda n: n.op("Sub", _x(n), n.op("Reshape", mean(n, "x", keepdims=0), [0, 4, 1])),
        "ReduceMean Sub",
    ),
    "mean, Unsqueeze": Row(
        lambda n: n.op("Sub", _x(n), n.op("Unsqueeze", mean(n, "x", (1,), keepdims=0), [1])),
        "ReduceMean Sub",
        18,
    ),
}
NOT_STORED = {
    "float to integer": Row(
        lambda n: n.op("Reshape", _x(n), n.op("Cast", [-1.0, 20.0], to=INT64)),
        "a Cast that is not computed here",
    ),
    "an output": Row(
        lambda n: (n.op("Relu", _x(n)), n.op("Cast", n.draw(3), to=FLOAT16)),
        "it is an output of the model",
    ),
}
NOT_THE_SAME = {
    "another shape": Row(lambda n: n.op("Reshape", _x(n), [-1, 5, 4]), "another shape"),
    "two sizes not known": Row(
        lambda n: n.op("Reshape", _x(n, "n", "s", 5), [-1, 4, 5]), "another shape"
    ),
}
NO_TRANSPOSES = {
    "the first read elsewhere": Row(
        lambda n: (
            n.op("Transpose", n.op("Transpose", _x(n), perm=[1, 2, 0], name="t"), perm=[2, 0, 1]),
            n.op("Neg", "t_y"),
        ),
        "'t_y' used elsewhere",
    ),
}
NO_CAST = {"another type": Row(lambda n: n.op("Cast", _x(n), to=FLOAT16), "another type")}
NO_MEAN = {
    "another axis": Row(
        lambda n: n.op("Reshape", mean(n, _x(n), (1,), keepdims=0), [-1, 5, 1]),
        "another shape than that of the kept axes",
    ),
    "the mean read elsewhere": Row(
        lambda n: (
            n.op("Reshape", mean(n, _x(n), keepdims=0, name="m"), [-1, 4, 1]),
            n.op("Neg", "m_y"),
        ),
        "'m_y' used elsewhere",
    ),
}


@pytest.mark.parametrize("build", WEIGHTS.values(), ids=list(WEIGHTS))
def test_weight_of_a_linear(build) -> None:
    model = assert_rewritten(Row(build, "MatMul"))
    (node,) = model.graph.nodes
    weight = values(node.inputs[1])
    assert (weight.shape, weight.dtype) == ((5, 7), np.float32)


def test_tied_weight_keeps_both_forms() -> None:
    def build(net: Net) -> str:
        w = net.draw(7, 5)
        rows = net.op("Gather", w, net.store([[0, 3]], dtype=np.int64))
        return net.op("MatMul", net.op("Add", rows, _x(net, 1, 2, 5)), net.op("Transpose", w))

    assert_rewritten(Row(build, "Gather Add MatMul"))


@pytest.mark.parametrize("row", RESHAPES.values(), ids=list(RESHAPES))
def test_says_nothing(row: Row) -> None:
    assert_rewritten(row)


@pytest.mark.parametrize(
    ("rule", "row"),
    by_rule(
        {
            "FoldStored": NOT_STORED,
            "SameReshape": NOT_THE_SAME,
            "TransposeTwice": NO_TRANSPOSES,
            "CastToItself": NO_CAST,
            "KeptAxes": NO_MEAN,
        }
    ),
)
def test_near_miss(rule: str, row: Row) -> None:
    assert_left_alone(rule, row)


def test_a_scalar_stays_a_scalar() -> None:
    """As rank 1 it would give its rank to what it is compared or multiplied with."""
    net = Net()
    limit = net.op("Cast", net.store(0.5, dtype=np.float16), to=FLOAT)
    least = net.op("ReduceMin", net.op("Relu", _x(net, 4, 5)), keepdims=0)
    model, _ = rewrite(net.proto(net.op("Greater", least, limit)))
    (greater,) = (node for node in model.graph.nodes if node.op == "Greater")
    assert values(greater.inputs[1]).shape == ()
