"""Settings from Python are of the types that they are annotated with, or the error says which."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from fusewright.errors import UsageError

_ANY_NUMBER: dict[Any, type] = {int: numbers.Integral, float: numbers.Real}


def check_types(settings: Any) -> None:
    """Refuses a dataclass of which a field holds another type than it says; a list is a tuple.

    Raises:
        UsageError: with the field, what it takes and what it holds.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not _fits(value, hint):
            raise UsageError(f"setting '{name}' takes {_spelled(hint)}, not {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        kinds = inside[:1] * len(value) if inside[-1] is ... else inside
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(k, inside[0]) and _fits(v, inside[1]) for k, v in value.items()
        )
    if inside:
        return any(_fits(value, kind) for kind in inside)
    if hint in _ANY_NUMBER:
        return isinstance(value, _ANY_NUMBER[hint]) and not isinstance(value, bool)
    return isinstance(value, hint)


def _spelled(hint: Any) -> str:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is tuple:
        parts = [f"{_spelled(inside[0])}, …"] if inside[-1] is ... else map(_spelled, inside)
        return f"({', '.join(parts)})"
    if origin is Mapping:
        return f"a dict from {_spelled(inside[0])} to {_spelled(inside[1])}"
    if inside:
        return " or ".join(map(_spelled, inside))
    return "None" if hint is NoneType else str(hint.__name__)
