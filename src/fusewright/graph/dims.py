"""Sizes of dynamic dimensions as integer polynomials over named symbols: `64*batch`, `seq + 1`.

A size is an int, a `Dim`, or None where it is unknown. Symbols are the dimensions of the model's
inputs, so they are at least 0. Whatever cannot be said for all their values is None, never a guess.
"""

from __future__ import annotations

import ast
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Size: TypeAlias = "int | Dim"
Shape: TypeAlias = "tuple[int | Dim | None, ...]"


@dataclass(frozen=True)
class Smaller:
    """`min(bound, of)`: what a slice `[:of]` of `bound` elements has; `bound` is at least 1."""

    bound: int
    of: Dim

    def __str__(self) -> str:
        return f"min({self.bound}, {self.of})"


_Factor: TypeAlias = "str | Smaller"
_Monomial: TypeAlias = "tuple[_Factor, ...]"  # sorted, repeated for powers; () is the constant


@dataclass(frozen=True)
class Dim:
    """A polynomial with at least one symbol; arithmetic that loses it gives an int.

    Attributes:
        terms: (monomial, coefficient), sorted, no coefficient 0.
    """

    terms: tuple[tuple[_Monomial, int], ...]

    @staticmethod
    def symbol(name: str) -> Dim:
        """The polynomial that is one symbol; `name` is an identifier."""
        return Dim((((name,), 1),))

    def __str__(self) -> str:
        text = " + ".join(_term(monomial, factor) for monomial, factor in self.terms)
        return text.replace("+ -", "- ")

    def __neg__(self) -> Size:
        return self * -1

    def __add__(self, other: Size) -> Size:
        total = Counter(dict(self.terms))
        for monomial, factor in _terms(other):
            total[monomial] += factor
        return _made(total)

    def __sub__(self, other: Size) -> Size:
        return self + other * -1

    def __rsub__(self, other: int) -> Size:
        return self * -1 + other

    def __mul__(self, other: Size) -> Size:
        total: Counter[_Monomial] = Counter()
        for one, a in self.terms:
            for two, b in _terms(other):
                total[tuple(sorted(one + two, key=str))] += a * b
        return _made(total)

    def __floordiv__(self, other: Size) -> Size | None:
        """The quotient where the division leaves no remainder, else None."""
        return quotient(self, other)

    def __mod__(self, other: Size) -> Size | None:
        """The remainder where it is the same for all values, else None."""
        return remainder(self, other)

    __radd__ = __add__
    __rmul__ = __mul__

    def at(self, values: Mapping[str, int]) -> int | None:
        """The size where symbols have these values; None where one is not given."""
        total = 0
        for monomial, factor in self.terms:
            for part in monomial:
                value = values.get(part) if isinstance(part, str) else _smaller_at(part, values)
                if value is None:
                    return None
                factor *= value
            total += factor
        return total

    def symbols(self) -> frozenset[str]:
        """Names of all symbols in it."""
        parts = {part for monomial, _ in self.terms for part in monomial}
        inner = [part.of.symbols() for part in parts if isinstance(part, Smaller)]
        return frozenset(p for p in parts if isinstance(p, str)).union(*inner)


def quotient(a: Size, b: Size) -> Size | None:
    """a / b where that is a polynomial, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    divisor = _terms(b)
    if not divisor:
        return None
    lead, factor = divisor[0]
    found: Size = 0
    while terms := _terms(a):
        (monomial, coefficient) = terms[0]
        rest = Counter(monomial)
        rest.subtract(lead)
        if coefficient % factor or min(rest.values(), default=0) < 0:
            return None
        part = _made({tuple(sorted(rest.elements(), key=str)): coefficient // factor})
        found, a = found + part, a - part * b
    return found


def floor(a: Size, b: int) -> Size | None:
    """⌊a / b⌋ for b > 0, where that is a polynomial: 2·h + 1 over 2 is h."""
    constant = _constant(a)
    whole = quotient(a - constant, b)
    return None if whole is None else whole + constant // b


def remainder(a: Size, b: Size) -> Size | None:
    """A mod b with the sign of b, where it is the same for all values: 7·batch + 3 over 7 is 3."""
    if quotient(a, b) is not None:
        return 0
    if isinstance(b, Dim) or b == 0:
        return None
    constant = _constant(a)
    return constant % b if quotient(a - constant, b) is not None else None


def at_least(size: Size) -> int | None:
    """A lower bound that holds for all symbols ≥ 0, else None."""
    terms = _terms(size)
    return _constant(size) if all(factor > 0 for m, factor in terms if m) else None


def is_never(a: Size, b: Size) -> bool:
    """Whether two sizes differ whatever the symbols are: 64·batch is never 1."""
    difference = a - b
    constant = _constant(difference)
    lower, upper = at_least(difference), at_least(difference * -1)
    if (lower is not None and lower > 0) or (upper is not None and upper > 0):
        return True
    step = math.gcd(*(factor for monomial, factor in _terms(difference) if monomial))
    return constant % step != 0 if step else constant != 0


def smaller(a: Size, b: Size) -> Size | None:
    """min(a, b), as a symbol of its own between a number and a polynomial."""
    for one, other in ((a, b), (b, a)):
        gap = at_least(other - one)
        if gap is not None and gap >= 0:
            return one
    if isinstance(a, Dim) and isinstance(b, Dim):
        return None
    bound, of = (a, b) if isinstance(b, Dim) else (b, a)
    assert isinstance(bound, int)
    return Dim((((Smaller(bound, of),), 1),)) if isinstance(of, Dim) and bound > 0 else None


def is_cut_from(a: Size, b: Size) -> bool:
    """Whether a is min(n, b) for some number n."""
    parts = [monomial for monomial, factor in _terms(a) if factor == 1]
    return len(parts) == 1 and len(parts[0]) == 1 and getattr(parts[0][0], "of", None) == b


def parse(text: str) -> Size | None:
    """Reads what `str` writes, and what torch's exporter writes of this kind; else None."""
    try:
        return _parsed(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return None


def resolve(
    shape: Iterable[int | str | Dim | None], values: Mapping[str, int]
) -> tuple[int | None, ...]:
    """A shape, as tensors carry it, where symbols have these values; None is what stays open."""
    sizes = (parse(dim) if isinstance(dim, str) else dim for dim in shape)
    return tuple(size.at(values) if isinstance(size, Dim) else size for size in sizes)


def _terms(size: Size) -> tuple[tuple[_Monomial, int], ...]:
    if isinstance(size, Dim):
        return size.terms
    return (((), size),) if size else ()


def _constant(size: Size) -> int:
    terms = _terms(size)
    return terms[-1][1] if terms and not terms[-1][0] else 0


def _made(total: Mapping[_Monomial, int]) -> Size:
    terms = [(monomial, factor) for monomial, factor in total.items() if factor]
    if not any(monomial for monomial, _ in terms):
        return terms[0][1] if terms else 0
    # By degree, then by symbol: an order that multiplication keeps, as long division needs it.
    terms.sort(key=lambda term: (-len(term[0]), [str(part) for part in term[0]]))
    return Dim(tuple(terms))


def _smaller_at(part: Smaller, values: Mapping[str, int]) -> int | None:
    value = part.of.at(values)
    return None if value is None else min(part.bound, value)


def _term(monomial: _Monomial, factor: int) -> str:
    parts = [
        f"{part}**{power}" if power > 1 else str(part) for part, power in Counter(monomial).items()
    ]
    if not parts or abs(factor) != 1:
        return "*".join([str(factor), *parts])
    return ("-" if factor < 0 else "") + "*".join(parts)


_OPERATORS: dict[type[ast.operator], Callable[[Size, Size], Size | None]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: quotient,
    ast.Mod: remainder,
    ast.Pow: lambda a, b: math.prod([a] * b) if isinstance(b, int) and 0 <= b <= 8 else None,
}


def _parsed(node: ast.expr) -> Size | None:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return Dim.symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            size = _parsed(inner)
            return None if size is None else size * -1
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _parsed(left), _parsed(right)
            return None if a is None or b is None else _OPERATORS[type(op)](a, b)
        case ast.Call(func=ast.Name(id="min" | "Min"), args=[left, right]):
            a, b = _parsed(left), _parsed(right)
            return None if a is None or b is None else smaller(a, b)
    return None
