"""Divisors that come near 0: what is rounded in front of them may fall on the other side.

y/x jumps from one infinity to the other there, and an Atan of it by half a turn. No precision holds
that: each rounding in front turns some elements, and a few samples do not show how many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from fusewright.graph.families import CONTRACTIONS, LAYOUT
from fusewright.graph.walk import is_constant, peek, producer
from fusewright.quantize.probabilities import new_node

_DIVISOR = {"Div": 1, "Reciprocal": 0}
_NOT_NEGATIVE = frozenset(
    {
        "Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare",
        "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt",
    }
)  # fmt: skip
# Of operands that are all not negative neither is the result; of some it is enough that one is.
_ONE = frozenset({"Cast", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})
_SEVERAL = frozenset({"Concat", "ScatterElements", "ScatterND"})
_ALL = frozenset({"Add", "Concat", "Div", "Min", "Mul", "Sum"})
_ANY = frozenset({"Clip", "Max"})
_DEPTH = 8
# A layer is off by a hundredth of its largest values in INT8, and by more than that on others.
_NEAR = 1 / 16
_NOT_ZERO = 1e-30


@dataclass(frozen=True)
class Divisor:
    """The tensors, float32 [1], that tell how near a divisor comes to 0.

    Attributes:
        node: the one that divides.
        above: the largest x, if any is above 0; 0 else.
        below: the largest −x, if any is; 0 else.
        inverse: the largest 1 / |x|.
        is_linear: a layer makes it, so that nothing keeps it from 0.
    """

    node: str
    above: str
    below: str
    inverse: str
    is_linear: bool

    @property
    def tensors(self) -> tuple[str, str, str]:
        """All of them."""
        return self.above, self.below, self.inverse

    def note(self, maxima: Mapping[str, np.ndarray]) -> str:
        """What the user should know of it; empty where it stays away from 0.

        Args:
            maxima: of the tensors.
        """
        above, below, inverse = (float(maxima[name][0]) for name in self.tensors)
        if above and below:
            reach = f"numbers from {-below:.3g} to {above:.3g}"
        elif self.is_linear and inverse * max(above, below) * _NEAR > 1:
            reach = f"numbers as small as {1 / inverse:.2g} beside {max(above, below):.3g}"
        else:
            return ""
        return (
            f"'{self.node}' divides by {reach}: around 0 its result jumps, and whatever is"
            " rounded in front of it may fall on the other side; how often is not told by a few"
            " samples"
        )


def watch_divisors(proto: onnx.ModelProto, graph: gs.Graph) -> list[Divisor]:
    """Adds to a flat float model, in place, what tells how near divisors come to 0.

    Those that cannot be negative are left out: deviations, norms and sums of e^x.

    Args:
        proto: the model.
        graph: the same with its connections.
    """
    found: list[Divisor] = []
    for node in graph.nodes:
        read = node.inputs[_DIVISOR[node.op]] if node.op in _DIVISOR else None
        if read is None or producer(read) is None or read.dtype != np.float32 or _is_safe(read):
            continue
        name = f"fusewright_divisor_{len(found)}"
        _add(proto.graph, read.name, name)
        above, below, inverse = (f"{name}_{end}" for end in ("above", "below", "inverse"))
        found.append(Divisor(node.name, above, below, inverse, _is_linear(read)))
    return found


def _add(graph: onnx.GraphProto, read: str, name: str) -> None:
    """The three numbers; NaN counts as 0, and so does a tensor without elements."""
    numbers: dict[str, np.ndarray] = {
        "flat": np.array([-1], np.int64),
        "one": np.array([1], np.int64),
        "zero": np.zeros(1, np.float32),
        "least": np.array([_NOT_ZERO], np.float32),
        "most": np.array([np.finfo(np.float32).max], np.float32),
    }
    stored = {key: f"{name}_{key}" for key in numbers}
    graph.initializer.extend(
        numpy_helper.from_array(value, stored[key]) for key, value in numbers.items()
    )

    def add(op: str, result: str, *inputs: str, **attributes: int) -> str:
        graph.node.append(new_node(op, list(inputs), f"{name}_{result}", **attributes))
        return f"{name}_{result}"

    vector = add("Reshape", "vector", read, stored["flat"])
    values = add("Concat", "values", vector, stored["zero"], axis=0)
    turned, size = add("Neg", "turned", values), add("Abs", "size", values)
    inverse = add("Reciprocal", "whole", add("Max", "held", size, stored["least"]))
    for end, kept, limit, over in (
        ("above", values, "zero", values),
        ("below", turned, "zero", turned),
        ("inverse", inverse, "least", size),
    ):
        is_over = add("Greater", f"{end}_is", over, stored[limit])
        chosen = add("Where", f"{end}_chosen", is_over, kept, stored["zero"])
        bounded = add("Min", f"{end}_bounded", chosen, stored["most"])
        largest = add("ReduceMax", f"{end}_largest", bounded, keepdims=0)
        add("Reshape", end, largest, stored["one"])


def _is_linear(tensor: gs.Tensor) -> bool:
    node = producer(tensor)
    while node is not None and node.op in LAYOUT | {"Add", "Sub"}:
        computed = [t for t in node.inputs if not is_constant(t)]
        node = producer(computed[0]) if computed else None
    return node is not None and node.op in CONTRACTIONS


def _is_safe(tensor: gs.Tensor, depth: int = _DEPTH) -> bool:
    """Whether it cannot be negative, by the last operators that it is made by."""
    if is_constant(tensor):
        return bool((np.asarray(peek(tensor)) >= 0).all())
    node = producer(tensor)
    if node is None or not depth:
        return False
    if node.op in _NOT_NEGATIVE or (node.op == "Mul" and node.inputs[0] is node.inputs[1]):
        return True
    if node.op == "Pow" and is_constant(node.inputs[1]):
        even = (np.asarray(peek(node.inputs[1])) % 2 == 0).all()
        return bool(even) or _is_safe(node.inputs[0], depth - 1)
    if node.op in _ANY:
        return any(_is_safe(t, depth - 1) for t in node.inputs[:2] if not t.is_empty())
    if node.op in LAYOUT | _ONE and node.op not in _SEVERAL:
        return _is_safe(node.inputs[0], depth - 1)
    return node.op in _ALL and all(_is_safe(t, depth - 1) for t in node.inputs)
