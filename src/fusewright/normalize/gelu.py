"""GELU in one form: the operator from opset 20 on, before it one spelling of each chain.

    erf:   x·½ · (1 + erf(x/√2))
    tanh:  x·½ · (1 + tanh(√(2/π) · (x + 0.044715·x³)))

Exporters put the half in six places, and write x/√2 as a product. Moving a factor of one half is
exact in floating point: the erf chain's results stay as they are, bit by bit.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.walk import scalar
from fusewright.match.matcher import Match
from fusewright.match.pattern import Const, Pattern, const, one_of, op, var
from fusewright.normalize.constants import exactly
from fusewright.normalize.rule import Edit, Rule

GELU_OPSET = 20
# By name: the constant, and how far off it may be where the operator is to have the same results
# within 1e-5 (erf) or 1e-4 (tanh).
_CONSTANTS = {
    "factor": (math.sqrt(0.5), 3e-6),
    "divisor": (math.sqrt(2.0), 3e-6),
    "root": (math.sqrt(2.0 / math.pi), 3e-5),
    "cubic": (0.044715, 3e-5),
}


def _constant(name: str) -> Const:
    value, _ = _CONSTANTS[name]
    return const(name, value=value, expected=f"the constant {value:g}")


def _gated(x: Pattern, inner: Pattern) -> Pattern:
    """x·½·(1 + inner) with the half in any place, as a factor or a divisor."""
    half, two = exactly(0.5), exactly(2.0)
    gate = op("Add", inner, exactly(1.0))
    half_x = one_of(op("Mul", x, half, name="half"), op("Div", x, two))
    half_gate = one_of(
        op("Mul", gate, half), op("Div", gate, two), op("Add", op("Mul", inner, half), half)
    )
    product = op("Mul", x, gate)
    return one_of(
        op("Mul", half_x, gate),
        op("Mul", x, half_gate),
        op("Mul", product, half),
        op("Div", product, two),
    )


def _erf(x: Pattern) -> Pattern:
    divided = op("Div", x, _constant("divisor"), name="inner")
    return op("Erf", one_of(divided, op("Mul", x, _constant("factor"), name="inner")))


def _tanh(x: Pattern) -> Pattern:
    """√(2/π)·(x + 0.044715·x³), or x·√(2/π)·(1 + 0.044715·x²) as transformers' gelu_fast."""
    root, cubic = _constant("root"), _constant("cubic")
    square = one_of(op("Mul", x, x), op("Pow", x, exactly(2.0)))
    cube = one_of(op("Pow", x, exactly(3.0), name="cube"), op("Mul", square, x))
    weighted_square = one_of(op("Mul", square, cubic), op("Mul", op("Mul", x, cubic), x))
    weighted_cube = one_of(
        op("Mul", cube, cubic),
        op("Mul", weighted_square, x),
        op("Mul", op("Mul", x, cubic), square),
    )
    bracket = op("Add", weighted_square, exactly(1.0))
    argument = one_of(
        op("Mul", op("Add", x, weighted_cube), root),
        op("Mul", op("Mul", x, root), bracket),
        op("Mul", x, op("Mul", bracket, root)),
        op("Mul", op("Mul", x, bracket), root),
    )
    return op("Tanh", argument)


def _rewrite(match: Match, edit: Edit) -> str | None:
    is_erf = "inner" in match.named
    reason = _inexact(match, edit)
    if reason is None:
        attrs = {"approximate": "none" if is_erf else "tanh"}
        gelu = edit.node("Gelu", [match.tensors["x"]], match.root.name, attrs)
        edit.replace(match, [gelu])
        return None
    written = "half" in match.named and (is_erf or "cube" in match.named)
    if written:
        return f"{reason}; the chain stays"
    _write_chain(match, edit, is_erf=is_erf)
    return None


def _inexact(match: Match, edit: Edit) -> str | None:
    """Why the operator cannot stand for the chain."""
    if edit.opset < GELU_OPSET:
        return f"Gelu needs opset {GELU_OPSET}"
    for name, (value, tolerance) in _CONSTANTS.items():
        tensor = match.tensors.get(name)
        if tensor is None:
            continue
        found = scalar(tensor)
        if found is None or abs(found - value) > tolerance * value:
            return f"a constant {found:g} where {value:.8g} is exact"
        if numpy_type(tensor.dtype) != np.float32:
            return f"type {numpy_type(tensor.dtype)}"
    return None


def _write_chain(match: Match, edit: Edit, *, is_erf: bool) -> None:
    """The spelling that an Act matches, with the constants as they were written."""
    x, name = match.tensors["x"], match.root.name
    dtype = np.dtype(next(match.tensors[n].dtype for n in _CONSTANTS if n in match.tensors))

    def make(op_type: str, source: gs.Tensor, other: gs.Tensor | float) -> gs.Node:
        if isinstance(other, float):
            other = edit.constant(f"{name}_constant", np.array(other, dtype))
        nodes.append(edit.node(op_type, [source, other], f"{name}_{op_type}"))
        return nodes[-1]

    nodes: list[gs.Node] = []
    if is_erf:
        nodes.append(match.named["inner"])
    else:
        cube = make("Pow", x, 3.0)
        bracket = make("Add", x, make("Mul", cube.outputs[0], match.tensors["cubic"]).outputs[0])
        make("Mul", bracket.outputs[0], match.tensors["root"])
    nodes.append(edit.node("Erf" if is_erf else "Tanh", nodes[-1].outputs, f"{name}_gate"))
    gate = make("Add", nodes[-1].outputs[0], 1.0)
    half = make("Mul", x, 0.5)
    nodes.append(edit.node("Mul", [*half.outputs, *gate.outputs], name))
    edit.replace(match, nodes)


_X = var("x")

RULES = (
    Rule(
        "GeluErf",
        "x·½·(1 + erf(x/√2)) → Gelu(x)",
        _gated(_X, _erf(_X)),
        _rewrite,
    ),
    Rule(
        "GeluTanh",
        "x·½·(1 + tanh(√(2/π)·(x + 0.044715·x³))) → Gelu(x, tanh)",
        _gated(_X, _tanh(_X)),
        _rewrite,
    ),
)
