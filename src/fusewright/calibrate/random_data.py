"""Random samples: for timing and structure when there is no data, and only when asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fusewright.calibrate.reading import reading
from fusewright.errors import DataError, UsageError
from fusewright.graph.session import TensorSpec


@dataclass(frozen=True)
class RandomSamples:
    """Asks for seeded random data: floats standard normal, integers 0 or 1, bools either.

    Attributes:
        count: how many feeds.
        seed: sample i depends on (seed, i) only.
        shapes: shape by input name, for dimensions that the model leaves open; an open axis 0
            without an entry is 1. Of an input that may hold sizes, its values in each feed.
    """

    count: int = 16
    seed: int = 0
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def feeds(self, inputs: Sequence[TensorSpec]) -> Iterator[dict[str, np.ndarray]]:
        """The feeds; the same at each call.

        Raises:
            UsageError: `shapes` names no input, or does not fit one.
            DataError: a dimension is open, or a dtype has no sensible random values.
        """
        names = [spec.name for spec in inputs]
        if unknown := [name for name in self.shapes if name not in names]:
            raise UsageError(f"shape for {unknown[0]!r}: no input of the model ({names})")
        if self.count < 1:
            raise UsageError(f"{self.count} random samples: at least 1 is needed")
        values = {spec.name: self._values(spec) for spec in inputs}
        shapes = [self._shape(spec) if values[spec.name] is None else () for spec in inputs]
        for index in range(self.count):
            rng = np.random.default_rng((self.seed, index))
            drawn = {}
            for spec, shape in zip(inputs, shapes, strict=True):
                held = values[spec.name]
                drawn[spec.name] = _draw(rng, spec, shape) if held is None else held
            yield drawn

    def _values(self, spec: TensorSpec) -> np.ndarray | None:
        given = self.shapes.get(spec.name)
        if given is None or not spec.may_hold_sizes:
            return None
        shape = tuple(dim for dim in spec.shape or () if isinstance(dim, int))
        if len(given) != math.prod(shape):
            raise UsageError(
                f"values {tuple(given)} for input {spec.name!r} {list(shape)}: it holds"
                f" {math.prod(shape)}"
            )
        return np.array(given, spec.dtype).reshape(shape)

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        given = self.shapes.get(spec.name)
        if given is not None:
            return _overridden(spec, tuple(int(dim) for dim in given))
        if spec.shape is None:
            raise DataError(
                f"input {spec.name!r} declares no shape: random data needs one "
                f"(--shapes {spec.name}:1x3x224x224)"
            )
        dims: list[int] = []
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, int) and dim > 0:
                dims.append(dim)
            elif axis == 0:
                dims.append(1)
            else:
                raise DataError(
                    f"input {spec.name!r}: axis {axis} ({dim or '?'}) is dynamic: random data "
                    f"needs a shape (--shapes {spec.name}:{_example(spec.shape)})"
                )
        return tuple(dims)


def _example(shape: Sequence[int | str | None]) -> str:
    """A shape of the same rank: its fixed sizes, and 1 and 64 for open ones."""
    fixed = (dim if isinstance(dim, int) and dim > 0 else None for dim in shape)
    return "x".join(str(dim or (64 if axis else 1)) for axis, dim in enumerate(fixed))


def _overridden(spec: TensorSpec, given: tuple[int, ...]) -> tuple[int, ...]:
    shape = spec.shape
    if shape is not None:
        fits = len(shape) == len(given) and all(
            not isinstance(dim, int) or dim < 1 or dim == size
            for dim, size in zip(shape, given, strict=True)
        )
        if not fits:
            raise UsageError(f"shape {given} does not fit input {spec.name!r} {shape}")
    return given


def _draw(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    kind = spec.dtype.kind
    with reading(f"input {spec.name!r} of shape {list(shape)}", "no random data of this size"):
        if kind == "f":
            return np.asarray(rng.standard_normal(shape)).astype(spec.dtype)
        if kind in "iub":
            return np.asarray(rng.integers(0, 2, shape)).astype(spec.dtype)
    raise DataError(f"input {spec.name!r} is {spec.dtype}: no random data for it, give real data")
