"""What the tests of symbolic shapes share: found shapes beside those that onnxruntime gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from building import Net, as_model, run

from fusewright.graph.dims import Dim, resolve
from fusewright.graph.facts import Facts
from fusewright.graph.model import Model
from fusewright.graph.symbolic import propagate

# Two sizes for each symbol, so that a number that only fits one is found out.
SIZES = ({"batch": 2, "seq": 5, "h": 16, "w": 24}, {"batch": 3, "seq": 7, "h": 32, "w": 8})


@dataclass(frozen=True)
class Row:
    """A small graph and the shape that its output must be found to have.

    An expected dimension is a number, a text, or None where it must stay unknown; `expected` is
    None where not even the rank can be known.
    """

    build: Callable[[Net], str]
    expected: Sequence[int | str | None] | None
    opset: int = 17


def written(shape: Sequence[Any] | None) -> list[int | str | None] | None:
    """A found shape as tests write it."""
    return None if shape is None else [str(d) if isinstance(d, Dim) else d for d in shape]


def feed_of(proto: onnx.ModelProto, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Any]:
    """Random inputs; integers lie in 0 to 2, so that they can be indices."""
    random, feed = np.random.default_rng(seed), {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        whole = np.dtype(dtype).kind in "iu"
        array = random.integers(0, 3, shape) if whole else random.standard_normal(shape)
        feed[value.name] = np.asarray(array).astype(dtype)
    return feed


def found_in(proto: onnx.ModelProto) -> tuple[Model, Facts]:
    """The model as the stages see it, not cleaned, and what is known of it."""
    model = as_model(proto)
    return model, propagate(model.graph)


def assert_true(proto: onnx.ModelProto, sizes: Sequence[Mapping[str, int]] = SIZES) -> None:
    """Every shape and value that is found in a model is what onnxruntime computes."""
    model, facts = found_in(proto)
    tensors = {t.name: t for n in model.graph.nodes for t in n.outputs if t.name}
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    present = {v.name for v in proto.graph.output}
    made = {name for node in proto.graph.node for name in node.output}
    more = [name for name in tensors if name in made - present]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    for given in sizes:
        results = run(watched, feed_of(proto, given))
        for value, array in zip(watched.graph.output, results, strict=True):
            if value.name in tensors:
                _assert_fits(value.name, facts, tensors[value.name], array, given)


def _assert_fits(
    name: str, facts: Facts, tensor: Any, array: np.ndarray, sizes: Mapping[str, int]
) -> None:
    shape = facts.shape(tensor)
    if shape is not None:
        numbers = resolve(shape, sizes)
        assert len(numbers) == array.ndim, f"{name}: {written(shape)}, really {array.shape}"
        fits = [a in (None, b) for a, b in zip(numbers, array.shape, strict=True)]
        assert all(fits), f"{name}: {written(shape)}, really {array.shape}"
    value = facts.value(tensor)
    if value is not None:
        assert value.shape == array.shape, name
        for element, real in zip(value.flat, array.flat, strict=True):
            known = element.at(sizes) if isinstance(element, Dim) else element
            assert known is None or known == real, f"{name}: {value}, really {array}"
