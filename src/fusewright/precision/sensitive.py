"""Functions whose result is far more wrong than half makes their argument, and what they ask.

sin(4000) needs an argument that is right to a thousandth; half has steps of 4 there. e^x is as
wrong, relatively, as x is absolutely, and Softmax is e^x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fusewright.graph.families import LAYOUT
from fusewright.graph.walk import producer, scalar
from fusewright.precision.flow import Flow
from fusewright.precision.growth import Growth
from fusewright.precision.magnitude import Tolerances

# Times the rounding of the result. An angle of 8 is off by as much.
_OF_A_ROUNDING = 8.0
# What costs time in float32 may be off by a 64th, which leaves 46 dB.
_OF_WHAT_IS_HEAVY = 2.0**-6
# Of probabilities: a 16th, which leaves 29 dB. FP16 is off by that at logits of 128,
# BF16 at 16, where no key stands out.
_OF_A_POWER = 2.0**-4
# A difference so many times smaller than what it is of has lost three bits.
_CANCELS = 8.0
# Of a pixel that a grid points to; maps whose size is open are taken for this large.
_OF_A_PIXEL, _MAP = 2.0**-4, 512


@dataclass(frozen=True)
class Demand:
    """How exact a tensor has to be.

    Attributes:
        light: the largest absolute error, where float32 costs next to nothing.
        heavy: the same of what a heavy operator computes.
        size: the largest magnitude of the elements that matter.
        why: of the operator that asks.
        what: of those that make its argument.
    """

    light: float
    heavy: float
    size: float
    why: str
    what: str

    def scaled(self, factor: float, size: float) -> Demand:
        """The demand on an operand whose error is multiplied by `factor`."""
        if factor == 0:
            return Demand(math.inf, math.inf, size, self.why, self.what)
        return Demand(self.light / factor, self.heavy / factor, size, self.why, self.what)

    def joined(self, other: Demand) -> Demand:
        """What satisfies both."""
        first = self if self.heavy <= other.heavy else other
        return Demand(
            min(self.light, other.light),
            min(self.heavy, other.heavy),
            max(self.size, other.size),
            first.why,
            first.what,
        )


class Sensitive:
    """The demands of a graph's ill-conditioned functions."""

    def __init__(self, flow: Flow, growth: Growth) -> None:
        """Asks nothing yet.

        Args:
            flow: with the ranges.
            growth: by how much they may be exceeded.
        """
        self._flow, self._growth = flow, growth
        self._tolerances: dict[float, Tolerances] = {}
        self._light = _OF_A_ROUNDING * flow.kind.unit
        self._heavy = max(self._light, _OF_WHAT_IS_HEAVY)
        self._rules: dict[str, Callable[[gs.Node], Demand | None]] = {
            **dict.fromkeys(("Cos", "Sin", "Tan"), self._angle),
            **dict.fromkeys(("Acos", "Asin", "Atanh"), self._inverse),
            **dict.fromkeys(("Cosh", "Exp", "Sinh"), self._exponent),
            **dict.fromkeys(("Div", "Log", "Reciprocal"), self._remainder),
            **dict.fromkeys(("LogSoftmax", "Mod"), self._differences),
            "GridSample": self._grid,
            "Pow": self._power,
            "Softmax": self._logits,
            "Sub": self._difference,
        }

    def demand(self, node: gs.Node) -> tuple[tuple[int, ...], Demand] | None:
        """What the node itself asks, and of which inputs."""
        rule = self._rules.get(node.op)
        if rule is None or not self._flow.types.is_float(node.inputs[0]):
            return None
        asked = rule(node)
        return None if asked is None else (_arguments(node), asked)

    def _size(self, tensor: gs.Tensor) -> float | None:
        return self._growth.size(tensor)

    def _allowed(self, node: gs.Node) -> tuple[float, float]:
        """Error of the result: some of its own roundings, or what its readers do not see."""
        tensor = node.outputs[0]
        return self._tolerance(self._light).of(tensor), self._tolerance(self._heavy).of(tensor)

    def _tolerance(self, share: float) -> Tolerances:
        if share not in self._tolerances:
            self._tolerances[share] = Tolerances(self._flow, share)
        return self._tolerances[share]

    def _angle(self, node: gs.Node) -> Demand | None:
        size, result = self._size(node.inputs[0]), self._flow.peak(node.outputs[0])
        if size is None or not result:
            return None
        slope = 1.0 + result**2 if node.op == "Tan" else 1.0
        light, heavy = (allowed / slope for allowed in self._allowed(node))
        why, what = "angles of more than a turn", f"makes the angles of '{node.name}'"
        if math.isinf(size):
            why, what = (
                f"{text}, from positions of which no largest is declared"
                for text in ("angles of any size", what)
            )
        return Demand(light, heavy, size, why, what)

    def _inverse(self, node: gs.Node) -> Demand | None:
        size, result = self._size(node.inputs[0]), self._flow.peak(node.outputs[0])
        if size is None or not result:
            return None
        rest = max(0.0, 1.0 - size**2)
        slope = rest if node.op == "Atanh" else rest**0.5
        # At 1 an error of d makes one of √2d.
        light, heavy = (max(a * slope, a**2 / 2) for a in self._allowed(node))
        why = f"arguments up to {size:.6g}, near 1, where it is steep"
        return Demand(light, heavy, size, why, f"makes the argument of '{node.name}', near 1")

    def _exponent(self, node: gs.Node, logarithm: float = 1.0) -> Demand | None:
        """e^x, or b^x by its logarithm: only the largest results count."""
        result = self._flow.peak(node.outputs[0])
        grown = self._growth.of(node.inputs[_argument(node)])
        if not result or not math.isfinite(result) or not logarithm:
            return None
        size = abs(math.log(result) / logarithm) * (grown if result > 1 else 1.0)
        # Below 1 it is a Softmax that is written out.
        limits = (self._light, self._heavy) if result > 1 else (_OF_A_POWER, _OF_A_POWER)
        light, heavy = (limit / abs(logarithm) for limit in limits)
        why = f"e^x up to {result:.3g}: rounding x would show"
        return Demand(light, heavy, size, why, f"makes the exponents of '{node.name}'")

    def _logits(self, node: gs.Node) -> Demand | None:
        tensor = node.inputs[0]
        seen, kind = self._flow.ranges.logits.get(tensor.name), self._flow.kind
        if seen is None:
            return None
        rises = self._growth.of(tensor) > 1 and self._rises(tensor)
        grown = self._growth.of(tensor) if rises else 1.0
        error = seen.unsettled * grown * kind.unit
        if error <= _OF_A_POWER:
            return None  # what lies in front may hold masks, which are large and exact enough
        size = seen.top * grown
        why = f"logits up to {size:.3g}: {kind.title} makes probabilities wrong by {error:.0%}"
        if math.isinf(grown):
            why = "logits that rise with positions, of which no largest is declared"
        limit = _OF_A_POWER if math.isinf(grown) else _OF_A_POWER * seen.top / seen.unsettled
        return Demand(limit, limit, size, why, f"makes the logits of '{node.name}'")

    def _rises(self, tensor: gs.Tensor) -> bool:
        """Whether what grows with positions adds to the logits: ALiBi only takes away from them."""
        node = producer(tensor)
        if node is not None and node.op in LAYOUT | {"Add", "Sub", "Sum"}:
            grown = [t for t in node.inputs if self._growth.of(t) > 1]
            if node.op != "Sub" or not any(t is node.inputs[1] for t in grown):
                return any(map(self._rises, grown))
        seen = self._flow.ranges.tensors.get(tensor.name)
        return seen is None or seen.highest > 1.0

    def _differences(self, node: gs.Node) -> Demand | None:
        size = self._size(node.inputs[0])
        if size is None or not self._flow.peak(node.outputs[0]):
            return None
        light, heavy = self._allowed(node)
        why = f"takes differences of values up to {size:.3g}"
        return Demand(light, heavy, size, why, f"'{node.name}' {why}")

    def _difference(self, node: gs.Node) -> Demand | None:
        """x − floor(x), or what nearly cancels: E[x²] − E[x]²."""
        if _is_fraction(node):
            return self._differences(node)
        sizes, result = list(map(self._size, node.inputs)), self._flow.peak(node.outputs[0])
        size = max((size for size in sizes if size is not None), default=0.0)
        if None in sizes or not result or not result * _CANCELS < size < math.inf:
            return None
        light, heavy = self._allowed(node)
        why = f"values up to {size:.3g} cancel to {result:.3g}"
        return Demand(light, heavy, size, why, f"makes what cancels in '{node.name}'")

    def _remainder(self, node: gs.Node) -> Demand | None:
        """A difference that gets near 0, such as 1 − p, is divided by, or its logarithm taken."""
        tensor = node.inputs[_argument(node)]
        maker, least = producer(tensor), self._flow.smallest(tensor)
        if maker is None or maker.op not in ("Add", "Sub") or not least:
            return None
        why = f"reads differences as small as {least:.2g}"
        return Demand(self._light * least, math.inf, least, why, f"'{node.name}' {why}")

    def _power(self, node: gs.Node) -> Demand | None:
        base, exponent = scalar(node.inputs[0]), scalar(node.inputs[1])
        if base is not None and base > 0:
            return self._exponent(node, math.log(base))
        size = self._size(node.inputs[0])
        if exponent is None or abs(exponent) <= 1 or not size or math.isinf(size):
            return None
        light, heavy = (share * size / abs(exponent) for share in (self._light, self._heavy))
        what = f"makes what '{node.name}' raises to the power of {exponent:.3g}"
        return Demand(light, heavy, size, f"a power of {exponent:.3g}", what)

    def _grid(self, node: gs.Node) -> Demand | None:
        size = self._size(node.inputs[1])
        if size is None:
            return None
        shape = node.inputs[0].shape or ()
        longest = max((d for d in shape[2:] if isinstance(d, int)), default=_MAP)
        limit = _OF_A_PIXEL * 2 / longest
        what = f"makes the grid of '{node.name}'"
        return Demand(limit, limit, size, "its grid says where to sample", what)


def _is_fraction(node: gs.Node) -> bool:
    whole = producer(node.inputs[1])
    rounds = whole is not None and whole.op in ("Ceil", "Floor", "Round")
    return whole is not None and rounds and whole.inputs[0] is node.inputs[0]


def _arguments(node: gs.Node) -> tuple[int, ...]:
    return (0, 1) if node.op == "Sub" and not _is_fraction(node) else (_argument(node),)


def _argument(node: gs.Node) -> int:
    """The input that a function is ill-conditioned in."""
    if node.op == "Pow":
        return 1 if scalar(node.inputs[0]) is not None else 0
    return 1 if node.op in ("Div", "GridSample") else 0
