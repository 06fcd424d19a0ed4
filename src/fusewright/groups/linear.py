"""Linear layers, in their normal form x·W [+ b] with W as [in features, out features]."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import numpy_type
from fusewright.groups.activations import act
from fusewright.groups.kind import GroupKind
from fusewright.match.pattern import Pattern, const, one_of, op, var


def _is_matrix(tensor: gs.Constant) -> bool:
    return len(tensor.shape) == 2 and numpy_type(tensor.dtype).kind == "f"


def _is_bias(tensor: gs.Constant) -> bool:
    return len(tensor.shape) <= 1 or int(np.prod(tensor.shape)) == tensor.shape[-1]


def _linear() -> Pattern:
    weight = const("w", test=_is_matrix, expected="a stored matrix of weights")
    matmul = op("MatMul", var("x"), weight, name="layer")
    bias = const("b", test=_is_bias, expected="a bias vector")
    return one_of(op("Add", matmul, bias), matmul)


LINEAR_ACT = GroupKind(
    kind="LinearAct",
    formula="act(x·W + b)",
    pattern=act(_linear()),
    parameters=("w", "b", "slope"),
    inputs_to_quantize=frozenset({0}),
    weights={"w": 1},
)

LINEAR = GroupKind(
    kind="Linear",
    formula="x·W + b",
    pattern=_linear(),
    parameters=("w", "b"),
    inputs_to_quantize=frozenset({0}),
    weights={"w": 1},
)
