"""Arithmetic on single elements of shape tensors: ints, bools, NumPy floats, `Dim`; None: unknown.

Integers follow ONNX (division towards zero, modulo with the sign of the divisor), and a result is
given for a `Dim` only where it holds for every value of its symbols.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fusewright.graph.dims import Dim, at_least, floor, is_never, quotient, remainder, smaller


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, np.floating):
        return a / b if b else None
    exact = quotient(a, b)
    if exact is not None or isinstance(b, Dim) or not b:
        return exact
    if isinstance(a, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return floor(a, b) if b > 0 and _is_positive(a) else None


def _is_positive(a: Any) -> bool:
    lower = at_least(a)
    return lower is not None and lower >= 0


def _modulo(a: Any, b: Any) -> Any:
    return None if isinstance(a, np.floating) else remainder(a, b)


def _c_remainder(a: Any, b: Any) -> Any:
    whole = None if isinstance(a, np.floating) else _divide(a, b)
    return None if whole is None else a - whole * b


def _power(a: Any, b: Any) -> Any:
    # A float's power is not the same to the last bit everywhere.
    return a**b if isinstance(a, int) and isinstance(b, int) and 0 <= b <= 62 else None


def minimum(a: Any, b: Any) -> Any:
    """min(a, b); between a number and a `Dim` it is unknown unless one is never the larger."""
    if isinstance(a, np.floating):
        return min(a, b)
    least = smaller(a, b)
    return least if least in (a, b) else None


def maximum(a: Any, b: Any) -> Any:
    """max(a, b), likewise."""
    if isinstance(a, np.floating):
        return max(a, b)
    least = minimum(a, b)
    return None if least is None else b if least == a else a


def _equal(a: Any, b: Any) -> bool | None:
    if not isinstance(a, Dim) and not isinstance(b, Dim):
        return bool(a == b)
    return True if a == b else False if is_never(a, b) else None


def _less(a: Any, b: Any) -> bool | None:
    if not isinstance(a, Dim) and not isinstance(b, Dim):
        return bool(a < b)
    gap, back = at_least(b - a), at_least(a - b)
    if gap is not None and gap > 0:
        return True
    return False if back is not None and back >= 0 else None


def _not(a: Any) -> bool | None:
    return None if a is None else not a


def _and(a: Any, b: Any) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


def where(condition: Any, a: Any, b: Any) -> Any:
    """The chosen element; unknown where the condition is, unless both are the same."""
    if condition is None:
        return a if a is not None and type(a) is type(b) and a == b else None
    return a if condition else b


def _absolute(a: Any) -> Any:
    if isinstance(a, Dim):
        return a if _is_positive(a) else None
    return abs(a)


def cast(value: Any, to: np.dtype) -> Any:
    """The element in another type; unknown where it does not fit or is rounded."""
    if value is None or to.kind not in "iufb":
        return None
    if isinstance(value, Dim):
        # As a float it would be rounded where it is large.
        return value if to.kind == "i" and to.itemsize >= 4 else None
    if to.kind == "f":
        return to.type(value)
    if to.kind == "b":
        return bool(value)
    limits = np.iinfo(to)
    return int(value) if math.isfinite(value) and limits.min <= value <= limits.max else None


def known(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, unknown where an operand is."""

    def apply(*operands: Any) -> Any:
        return None if any(value is None for value in operands) else function(*operands)

    return apply


c_remainder = known(_c_remainder)
"""The remainder as C has it, with the sign of the dividend."""
UNARY: Mapping[str, Callable[[Any], Any]] = {
    "Neg": known(operator.neg),
    "Abs": known(_absolute),
    "Floor": known(np.floor),
    "Ceil": known(np.ceil),
    "Round": known(np.round),
    "Sqrt": known(lambda a: np.sqrt(a) if a >= 0 else None),
    "Not": _not,
}
BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": known(operator.add),
    "Sub": known(operator.sub),
    "Mul": known(operator.mul),
    "Div": known(_divide),
    "Mod": known(_modulo),
    "Pow": known(_power),
    "Equal": known(_equal),
    "Less": known(_less),
    "Greater": known(lambda a, b: _less(b, a)),
    "LessOrEqual": known(lambda a, b: _not(_less(b, a))),
    "GreaterOrEqual": known(lambda a, b: _not(_less(a, b))),
    "And": _and,
    "Or": lambda a, b: _not(_and(_not(a), _not(b))),
}
