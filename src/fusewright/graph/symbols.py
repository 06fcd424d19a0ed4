"""The symbols of a model: the dynamic dimensions of its inputs, and what they are bound to."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fusewright.errors import UsageError
from fusewright.graph.dims import Dim, Shape, Size, parse

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)


class Declared(Protocol):
    """An input as the file declares it: a `TensorSpec`, or a tensor of graphsurgeon."""

    @property
    def name(self) -> str:
        """The input's name."""

    @property
    def shape(self) -> Sequence[int | str | None] | None:
        """Its dimensions; None where the rank is not declared."""


@dataclass(frozen=True)
class Symbols:
    """What the dimensions of the inputs are called.

    Attributes:
        shapes: the shape of each input, by name, without None: a dimension that has no name in
            the file gets a symbol of its own.
        names: of all symbols.
    """

    shapes: Mapping[str, Shape]
    names: frozenset[str]

    @staticmethod
    def of(inputs: Sequence[Declared]) -> Symbols:
        """Names every dimension.

        A name that is no identifier is an expression over names that are (optimum writes
        `past_sequence_length + 1`), else it becomes an identifier.
        """
        given = [(i.name, i.shape) for i in inputs if i.shape is not None]
        texts = dict.fromkeys(d for _, shape in given for d in shape if isinstance(d, str))
        sizes: dict[str, Size] = {text: Dim.symbol(text) for text in texts if _is_symbol(text)}
        used = set(sizes)
        for text in texts:
            size = parse(text)
            if text not in sizes:
                known = size is not None and _names(size) <= used
                sizes[text] = size if known and size is not None else _own(text, used)
        shapes = {
            name: tuple(
                _own(f"{name}_{axis}", used) if d is None else sizes[d] if isinstance(d, str) else d
                for axis, d in enumerate(shape)
            )
            for name, shape in given
        }
        return Symbols(shapes, frozenset(used))

    def read(self, dim: int | str | None) -> Size | None:
        """A dimension of an annotated shape; a name that no input declares says nothing."""
        size = parse(dim) if isinstance(dim, str) else dim
        return size if size is None or _names(size) <= self.names else None


def bindings(inputs: Sequence[Declared], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What the symbols are when the inputs have these shapes: {"batch": 8}.

    Args:
        inputs: the model's interface.
        shapes: input name → shape, one end of `--shapes`; inputs that are not in it bind nothing.

    Raises:
        UsageError: two inputs say different things of one symbol.
    """
    bound: dict[str, int] = {}
    source: dict[str, str] = {}
    for name, declared in Symbols.of(inputs).shapes.items():
        for size, value in zip(declared, shapes.get(name, ()), strict=False):
            if not isinstance(size, Dim) or not _is_symbol(str(size)):
                continue
            symbol = str(size)
            if bound.setdefault(symbol, value) != value:
                raise UsageError(
                    f"--shapes makes dimension '{symbol}' {bound[symbol]} in input"
                    f" {source[symbol]} and {value} in input {name}; it is one size"
                )
            source.setdefault(symbol, name)
    return bound


def _names(size: Size) -> frozenset[str]:
    return size.symbols() if isinstance(size, Dim) else frozenset()


def _is_symbol(text: str) -> bool:
    return bool(_IDENTIFIER.fullmatch(text)) and not keyword.iskeyword(text)


def _own(text: str, used: set[str]) -> Dim:
    """A new symbol named after `text`."""
    plain = re.sub(r"\W", "_", text, flags=re.ASCII)
    plain = plain if _is_symbol(plain) else f"d_{plain}"
    name, number = plain, 1
    while name in used:
        number += 1
        name = f"{plain}_{number}"
    used.add(name)
    return Dim.symbol(name)
