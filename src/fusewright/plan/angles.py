"""Layers whose results are angles: Sin and Cos show an error that the layer's own range hides.

A step of INT8 is a 127th of the largest value, whatever that is: of an angle of ten turns, half a
radian. Segment-Anything's prompt encoder and other Fourier features are that, the first layer of a
SIREN, the phase of a vocoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.families import BOUNDED, CONTRACTIONS, LAYOUT, PLACES, POINTWISE
from fusewright.graph.products import longest_vector
from fusewright.graph.walk import is_constant, peek, producer, scalar
from fusewright.target import FORMATS
from fusewright.target.precision import FP8, INT8, MXFP8

_TURN = 2 * math.pi
_PERIODS = {"Cos": _TURN, "Sin": _TURN, "Tan": math.pi}
_ROUNDING = ("Ceil", "Floor", "Round")
# The most periods that inputs of about 1 may make: 25 dB and more are left of the Sin. The inner
# layers of a SIREN make a quarter of one. Formats of four bits are left the rest.
_MOST = {INT8: 1.0, FP8: 0.5, MXFP8: 0.5}
_OF_FOUR_BITS = 0.125
_FOLLOWED = (POINTWISE | LAYOUT) - BOUNDED
# Functions with bounds that an angle is made from nevertheless: their largest slope.
_SLOPES = {"Atan": 1.0, "HardSigmoid": 0.2, "Sigmoid": 0.25, "Softsign": 1.0, "Tanh": 1.0}
# x + sin²(αx)/α, the Snake of vocoders: what it adds changes as x does, or twice as fast.
_DAMPED = 4.0


@dataclass(frozen=True)
class Angles:
    """What becomes of a heavy operator's result.

    Attributes:
        function: the node that it is the argument of.
        periods: how many of the function's periods inputs of that size reach.
        size: of its inputs; 1 where it is not known.
    """

    function: gs.Node
    periods: float
    size: float = 1.0


def find_angles(
    graph: gs.Graph, opset: int, sizes: Mapping[str, float] = MappingProxyType({})
) -> dict[int, Angles]:
    """`id` of each heavy operator whose result is an angle, through pointwise and layout operators.

    Of several functions, the one of most periods. Where they are more than one, what makes the
    operands is as much at fault, up to a norm.

    Args:
        graph: flat and normalized.
        opset: of the graph.
        sizes: tensor name → how large it is, where that is known; what is computed is about 1
            else.
    """
    found: dict[int, Angles] = {}
    for node in graph.nodes:
        period = _period(node)
        if period is None or _is_damped(node):
            continue
        for maker, periods in _makers(node.inputs[0], period, opset, sizes):
            known = found.get(id(maker))
            if known is None or known.periods < periods:
                size = max(sizes.get(t.name, 1.0) for t in maker.inputs[:2])
                found[id(maker)] = Angles(node, periods, size)
    return found


def spoiled_angles(layer: gs.Node, angles: Mapping[int, Angles], decision: str) -> str | None:
    """Why a format would lose the angles that a layer with a stored weight makes, or None.

    Args:
        layer: Conv, ConvTranspose, Gemm or MatMul.
        angles: from `find_angles`.
        decision: the format.
    """
    made = angles.get(id(layer))
    if made is None:
        return None
    title, name = FORMATS[decision].title, f"{made.function.op} '{made.function.name}'"
    if _counts(layer.inputs[0]):
        return f"makes the angles of {name} from positions: they get larger than any sample shows"
    if made.periods <= _MOST.get(decision, _OF_FOUR_BITS):
        return None
    return (
        f"makes the argument of {name}, {made.periods:.3g} periods for inputs of {made.size:.3g}:"
        f" {title} would lose them"
    )


def _period(node: gs.Node) -> float | None:
    """The period of a function that repeats itself; None of all others."""
    if node.op == "Mod":
        return scalar(node.inputs[1])
    if node.op == "Sub":
        whole = producer(node.inputs[1])
        if whole is None or whole.op not in _ROUNDING:
            return None
        return 1.0 if whole.inputs[0] is node.inputs[0] else None
    return _PERIODS.get(node.op)


def _makers(
    tensor: gs.Tensor, period: float, opset: int, sizes: Mapping[str, float]
) -> Iterator[tuple[gs.Node, float]]:
    """The heavy operators that a tensor comes from, with the periods that each makes."""
    factors: dict[int, float] = {}
    # Behind the layer that makes the angles, an error counts by its share of the value.
    waiting: list[tuple[gs.Tensor, float, float | None]] = [(tensor, 1.0, None)]
    while waiting:
        at, factor, inherited = waiting.pop()
        node = producer(at)
        if node is None or factors.get(id(at), 0.0) >= factor:
            continue
        factors[id(at)] = factor
        if node.op in CONTRACTIONS:
            periods = inherited
            if periods is None:
                periods = factor * _reach(node, opset, sizes) / abs(period)
            yield node, periods
            if periods > 1:
                waiting += [(t, factor, periods) for t in node.inputs[:2]]
        else:
            waiting += [(t, factor * by, inherited) for t, by in _operands(node)]


def _reach(layer: gs.Node, opset: int, sizes: Mapping[str, float]) -> float:
    """How large a result inputs of about 1, or those that are known, make."""
    stored = [i for i, t in enumerate(layer.inputs[:2]) if is_constant(t)]
    if len(stored) != 1 or layer.op == "Einsum":
        return 1.0
    read = layer.inputs[1 - stored[0]]
    return longest_vector(layer, stored[0], opset) * max(sizes.get(read.name, 1.0), _picked(read))


def _picked(tensor: gs.Tensor) -> float:
    """The largest number of a stored table that it is a part of, such as positions; else 1."""
    node = producer(tensor)
    while node is not None and node.op in LAYOUT and node.inputs:
        if is_constant(node.inputs[0]):
            return float(np.abs(peek(node.inputs[0])).max(initial=1.0))
        node = producer(node.inputs[0])
    return 1.0


def _operands(node: gs.Node) -> Iterator[tuple[gs.Tensor, float]]:
    """What a light operator's result is made of, each with its largest factor in it."""
    if node.op in _SLOPES:
        yield node.inputs[0], _SLOPES[node.op]
    elif node.op == "CumSum":
        sizes = [d for d in node.inputs[0].shape or () if isinstance(d, int)]
        yield node.inputs[0], math.sqrt(max(sizes, default=1))
    elif node.op in _FOLLOWED:
        yield from ((t, _factor(node, i)) for i, t in _data(node))


def _data(node: gs.Node) -> Iterator[tuple[int, gs.Tensor]]:
    places = PLACES.get(node.op, ())
    yield from ((i, t) for i, t in enumerate(node.inputs) if i not in places)


def _factor(node: gs.Node, slot: int) -> float:
    """The largest stored number that an operand is multiplied with; 1 where it is computed."""
    if node.op not in ("Mul", "Div") or not is_constant(node.inputs[1 - slot]):
        return 1.0
    values = np.abs(np.asarray(peek(node.inputs[1 - slot]), np.float64))
    if node.op == "Mul":
        return float(values.max(initial=0.0))
    least = float(values.min(initial=math.inf, where=values > 0))
    return 1 / least if slot == 0 and math.isfinite(least) else 1.0


def _counts(tensor: gs.Tensor) -> bool:
    """Whether it is made of whole numbers: positions, or steps of time."""
    waiting, seen = [tensor], set[int]()
    while waiting:
        node = producer(waiting.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op == "Range" or (node.op == "Cast" and _is_whole(node.inputs[0])):
            return True
        if node.op in _FOLLOWED:
            waiting += [t for _, t in _data(node)]
    return False


def _is_whole(tensor: gs.Tensor) -> bool:
    if tensor.dtype is None or is_constant(tensor):
        return False
    # An image may be whole numbers too, but not of so many bits.
    return tensor.dtype in (np.int32, np.int64, np.uint32, np.uint64)


def _is_damped(node: gs.Node) -> bool:
    """Whether the result is squared and divided by what made the angle."""
    scale, square = producer(node.inputs[0]), _only_reader(node)
    if scale is None or scale.op != "Mul" or square is None or square.op not in ("Mul", "Pow"):
        return False
    inner = next((peek(t) for t in scale.inputs if is_constant(t)), None)
    last = _only_reader(square)
    if inner is None or last is None or last.op not in ("Mul", "Div"):
        return False
    outer = next((peek(t) for t in last.inputs if is_constant(t)), None)
    if outer is None or (outer.size > 1 and inner.size > 1 and outer.size != inner.size):
        return False
    factors = inner.reshape(-1) * (outer if last.op == "Mul" else 1 / outer).reshape(-1)
    return bool(np.abs(factors).max() <= _DAMPED)


def _only_reader(node: gs.Node) -> gs.Node | None:
    readers = {id(reader): reader for reader in node.outputs[0].outputs}
    return next(iter(readers.values())) if len(readers) == 1 else None
