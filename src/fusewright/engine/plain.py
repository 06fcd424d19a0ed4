"""Frozen dataclasses from the plain data that they were written as, each value checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
_SHOWN = 40


def from_plain(kind: type[T], plain: Any, where: str = "it") -> T:
    """An object of a dataclass from JSON: lists become tuples, objects dataclasses.

    Args:
        kind: a dataclass of numbers, texts, dataclasses, tuples and mappings of them.
        plain: what `json.load` gave; names that `kind` lacks are passed over.
        where: how messages call it.

    Raises:
        ValueError: something is missing, or of another type; the message says what.
    """
    if not isinstance(plain, dict):
        raise ValueError(_wrong(where, plain))
    # mypy cannot know that the type given is that of a dataclass, nor hash it for the cache.
    hints = _hints(kind)  # type: ignore[arg-type]
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in names:
        if name not in plain:
            raise ValueError(f"{where} lacks '{name}'")
    read = {name: _value(hints[name], plain[name], f"{where}.{name}") for name in names}
    return kind(**read)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(hint: Any, plain: Any, where: str) -> Any:
    where = where.removeprefix("it.")
    origin, parts = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, plain, where)
    if origin is UnionType:
        return None if plain is None else _value(parts[0], plain, where)
    if origin is tuple and isinstance(plain, list):
        each = [parts[0]] * len(plain) if parts[-1] is ... else list(parts)
        if len(each) == len(plain):
            pairs = zip(each, plain, strict=True)
            return tuple(_value(h, p, f"{where}[{i}]") for i, (h, p) in enumerate(pairs))
    if origin is Mapping and isinstance(plain, dict):
        return {name: _value(parts[1], part, f"{where}.{name}") for name, part in plain.items()}
    if type(plain) is hint or (hint is float and type(plain) is int):
        return plain
    raise ValueError(_wrong(where, plain))


def _wrong(where: str, plain: Any) -> str:
    text = repr(plain)
    return f"{where} is {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"
