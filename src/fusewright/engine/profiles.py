"""Optimization profiles: which shapes an engine is built for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fusewright.engine.ranges import Shape, ShapeRange, spelled
from fusewright.errors import EngineError, UsageError
from fusewright.graph.session import TensorSpec

Typed = tuple[str, str, str]
"""The options that the three shapes of one input were given in, as messages name them."""
_TYPED: Typed = ("--shapes",) * 3


def choose_profiles(
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, ShapeRange],
    typed: Mapping[str, Typed] | None = None,
) -> tuple[dict[str, ShapeRange], tuple[str, ...]]:
    """A shape range for each dynamic input, and notes on what was assumed.

    An input that is dynamic in its first axis only and has no declared shapes is built for
    batch 1. For an input that may hold sizes, what is declared are its values.

    Raises:
        UsageError: `shapes` names an unknown input or does not fit one.
        EngineError: an input with other dynamic axes has no declared shapes.
    """
    check_shapes(inputs, shapes, typed)
    profiles: dict[str, ShapeRange] = {}
    notes = []
    for spec in inputs:
        if spec.name in shapes and (is_dynamic(spec) or spec.may_hold_sizes):
            profiles[spec.name] = shapes[spec.name]
            continue
        if not is_dynamic(spec):
            continue
        shape = _batch_one(spec)
        profiles[spec.name] = (shape, shape, shape)
        notes.append(f"input {described(spec)} is built for batch 1: no --shapes were given for it")
    return profiles, tuple(notes)


def check_shapes(
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, ShapeRange],
    typed: Mapping[str, Typed] | None = None,
) -> None:
    """Refuses declared shapes that the model cannot have.

    Args:
        inputs: of the model.
        shapes: input name → smallest, optimal and largest shape.
        typed: input name → the options they were given in; `--shapes` where it says nothing.

    Raises:
        UsageError: `shapes` names an unknown input or does not fit one.
    """
    known = {spec.name: spec for spec in inputs}
    for name, ranges in shapes.items():
        options = (typed or {}).get(name, _TYPED)
        if name not in known:
            raise UsageError(
                f"{options[0]} names {name!r}; the model's inputs are {', '.join(known)}"
            )
        _check_fit(known[name], ranges, options)


def is_dynamic(spec: TensorSpec) -> bool:
    """Whether an engine needs a profile for this input."""
    return spec.shape is None or any(not isinstance(dim, int) for dim in spec.shape)


def described(spec: TensorSpec) -> str:
    """`'name' [batch,3,224,224]`, as messages show an input; `?` is a dimension without a name."""
    if spec.shape is None:
        return f"'{spec.name}' (shape not declared)"
    return f"'{spec.name}' [{','.join('?' if dim is None else str(dim) for dim in spec.shape)}]"


def _batch_one(spec: TensorSpec) -> Shape:
    static = tuple(d for d in spec.shape[1:] if isinstance(d, int)) if spec.shape else ()
    if spec.shape is None or len(static) != len(spec.shape) - 1:
        raise EngineError(
            f"input {described(spec)} has dynamic dimensions besides the batch: "
            f"say which with --shapes {spec.name}:MIN:OPT:MAX"
        )
    return (1, *static)


def _check_fit(spec: TensorSpec, shapes: ShapeRange, typed: Typed) -> None:
    optimal = shapes[1]
    if spec.may_hold_sizes:
        _check_values(spec, shapes, typed)
        return
    for option, shape in zip(typed, shapes, strict=True):
        if spec.shape is not None and not _fits(shape, spec.shape):
            raise UsageError(
                f"{option} {spec.name}:{spelled(shape)} does not fit input {described(spec)}"
            )
    if 0 in optimal and not (spec.shape is not None and 0 in spec.shape):
        raise UsageError(f"{typed[1]} {spec.name}:{spelled(optimal)} holds no elements")
    _check_order(spec, shapes, typed)


def _check_values(spec: TensorSpec, shapes: ShapeRange, typed: Typed) -> None:
    count = math.prod(d for d in spec.shape or () if isinstance(d, int))
    for option, values in zip(typed, shapes, strict=True):
        if len(values) != count:
            raise UsageError(
                f"{option} {spec.name}:{spelled(values)} is not the {count} values of input"
                f" {described(spec)}"
            )
    _check_order(spec, shapes, typed)


def _check_order(spec: TensorSpec, shapes: ShapeRange, typed: Typed) -> None:
    lowest, optimal, highest = shapes
    ranks_differ = not len(lowest) == len(optimal) == len(highest)
    if ranks_differ or any(
        not 0 <= a <= b <= c for a, b, c in zip(lowest, optimal, highest, strict=True)
    ):
        raise UsageError(
            f"{_as_typed(spec.name, shapes, typed)} must be MIN <= OPT <= MAX in every dimension"
        )


def _as_typed(name: str, shapes: ShapeRange, typed: Typed) -> str:
    if typed == _TYPED:
        return f"{_TYPED[0]} {name}:{':'.join(map(spelled, shapes))}"
    given = dict(zip(typed, shapes, strict=True))
    return ", ".join(f"{option} {name}:{spelled(shape)}" for option, shape in given.items())


def _fits(shape: Shape, declared: tuple[int | str | None, ...]) -> bool:
    return len(shape) == len(declared) and all(
        not isinstance(b, int) or a == b for a, b in zip(shape, declared, strict=True)
    )
