"""The equation of an Einsum of two operands, taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_ELLIPSIS = "..."
# Labels of what an ellipsis stands for; equations have letters only.
_HIDDEN = "0123456789"


@dataclass(frozen=True)
class Product:
    """A matrix product in labels, one character an axis.

    Attributes:
        a: axes of the first operand.
        b: axes of the second.
        out: axes of the result.
    """

    a: str
    b: str
    out: str

    @property
    def batch(self) -> str:
        """Axes of both operands and the result, in the result's order."""
        return "".join(n for n in self.out if n in self.a and n in self.b)

    @property
    def of_a(self) -> str:
        """Axes of the first operand and the result alone."""
        return "".join(n for n in self.out if n not in self.b)

    @property
    def of_b(self) -> str:
        """Axes of the second operand and the result alone."""
        return "".join(n for n in self.out if n not in self.a)

    @property
    def summed(self) -> str:
        """Axes of both operands that the result lacks, in the first's order."""
        return "".join(n for n in self.a if n in self.b and n not in self.out)

    @property
    def is_crossed(self) -> bool:
        """Whether the result ends with rows behind columns, as a·b would have them."""
        return bool(self.of_a) and self.out[-1] == self.of_a[-1] and bool(self.of_b)

    def swapped(self) -> Product:
        """The same with the operands exchanged."""
        return Product(self.b, self.a, self.out)


def parse(equation: str, ranks: Sequence[int | None]) -> Product | str:
    """Reads an equation of two operands.

    Args:
        equation: as ONNX has it; spaces and a missing `->` are allowed.
        ranks: of the operands; needed where the equation has an ellipsis.

    Returns:
        The product, or why it is not a matrix product.
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2:
        return f"{len(terms)} operands: no matrix product"
    hidden = []
    for i, (term, rank) in enumerate(zip(terms, ranks, strict=True)):
        count = 0
        if _ELLIPSIS in term:
            if rank is None:
                return "an ellipsis over a rank that is not known"
            count = rank - len(term.replace(_ELLIPSIS, ""))
            terms[i] = term.replace(_ELLIPSIS, _HIDDEN[len(_HIDDEN) - count :])
        hidden.append(count)
    inner = _HIDDEN[len(_HIDDEN) - max(hidden) :]
    out = out.replace(_ELLIPSIS, inner) if arrow else inner + _implicit("".join(terms))
    return _checked(Product(terms[0], terms[1], out))


def _implicit(labels: str) -> str:
    return "".join(sorted(n for n in set(labels) - set(_HIDDEN) if labels.count(n) == 1))


def _checked(product: Product) -> Product | str:
    a, b, out = product.a, product.b, product.out
    if any(len(set(term)) < len(term) for term in (a, b, out)):
        return "a label twice in one term: a diagonal"
    alone = [n for n in a + b if n not in out and (n not in a or n not in b)]
    if alone:
        return f"a sum over '{alone[0]}' of one operand alone"
    if not product.summed:
        return "no label is summed over: no matrix product"
    if any(n not in a + b for n in out):
        return "a label of the result that no operand has"
    return product
