"""What normalizations are made of: mean, variance, deviation, and the axes they run over."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.dtypes import numpy_type
from fusewright.graph.walk import attribute, axes_of, input_at, is_constant, rank_of, values
from fusewright.match.matcher import Match
from fusewright.match.pattern import Pattern, const, one_of, op, optional
from fusewright.normalize.constants import exactly, number_of, one


def mean(x: Pattern, name: str) -> Pattern:
    """ReduceMean that keeps its axes, which are an attribute before opset 18 and an input since."""
    return op("ReduceMean", x, optional(const()), name=name, keepdims=1)


def squared(x: Pattern) -> Pattern:
    """x²."""
    return one_of(op("Pow", x, exactly(2.0)), op("Mul", x, x))


def deviation(variance: Pattern) -> Pattern:
    """√(variance + eps); a node named `outside` says that eps is added to the root instead."""
    inside = one_of(op("Add", variance, one("eps")), variance)
    return one_of(
        op("Sqrt", inside),
        op("Pow", inside, exactly(0.5)),
        op("Add", op("Sqrt", variance), one("eps"), name="outside"),
    )


def inverse(std: Pattern, variance: Pattern) -> Pattern:
    """1/std: Reciprocal (TensorFlow, dynamo), 1/x (TorchScript's rsqrt), or a power."""
    shifted = one_of(op("Add", variance, one("eps")), variance)
    return one_of(
        op("Reciprocal", std),
        op("Div", exactly(1.0), std),
        op("Pow", shifted, exactly(-0.5)),
    )


def epsilon_of(match: Match) -> float:
    """What is added to the variance; dynamo leaves out an epsilon of 1e-12."""
    return number_of(match, "eps", 0.0)


def type_of(match: Match) -> np.dtype | None:
    """The type that a matched chain computes in, where it is known."""
    known = (match.tensors.get(name) for name in ("x", "eps", "scale"))
    return next((numpy_type(t.dtype) for t in known if t is not None and t.dtype is not None), None)


def trailing_axes(nodes: Iterable[gs.Node], x: gs.Tensor, opset: int) -> int | None:
    """Over how many of the last axes of `x` all of `nodes` reduce; None where that is not so."""
    counts = {_trailing(node, opset, rank_of(x)) for node in nodes}
    return counts.pop() if len(counts) == 1 else None


def _trailing(node: gs.Node, opset: int, rank: int | None) -> int | None:
    axes = _written_axes(node, opset) if rank is None else axes_of(node, opset, rank)
    if not axes:
        return None
    end = 0 if rank is None else rank
    return len(axes) if sorted(axes) == list(range(end - len(axes), end)) else None


def _written_axes(node: gs.Node, opset: int) -> list[int] | None:
    axes: list[int] | None = attribute(node, "axes", opset)
    tensor = input_at(node, 1)
    if axes is None and tensor is not None and is_constant(tensor):
        axes = values(tensor).reshape(-1).tolist()
    return axes
