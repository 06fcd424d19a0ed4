"""What the dynamic dimensions of a model's inputs are called, and what they are bound to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusewright.errors import UsageError
from fusewright.graph.dims import Dim
from fusewright.graph.session import TensorSpec
from fusewright.graph.symbols import Symbols, bindings


def _inputs(**shapes: tuple[Any, ...] | None) -> list[TensorSpec]:
    return [TensorSpec(name, np.dtype(np.float32), shape) for name, shape in shapes.items()]


def _text(symbols: Symbols, name: str) -> list[str]:
    return [str(size) for size in symbols.shapes[name]]


def test_a_name_is_one_symbol_in_all_inputs() -> None:
    symbols = Symbols.of(_inputs(ids=("batch", "seq"), mask=("batch", "seq"), scale=()))
    assert symbols.names == {"batch", "seq"}
    assert symbols.shapes["ids"] == symbols.shapes["mask"]
    assert symbols.shapes["scale"] == ()


def test_a_dimension_without_a_name_is_a_symbol_of_its_own() -> None:
    symbols = Symbols.of(_inputs(**{"x": (None, 3, None), "y": (None,), "x.1": (None,)}))
    assert _text(symbols, "x") == ["x_0", "3", "x_2"]
    assert _text(symbols, "y") == ["y_0"]
    assert _text(symbols, "x.1") == ["x_1_0"]
    assert len(symbols.names) == 4


def test_names_that_are_made_do_not_meet_those_that_are_given() -> None:
    symbols = Symbols.of(_inputs(x=(None, "x_0", "a b", "a_b", "a.b", "lambda", "1st")))
    names = _text(symbols, "x")
    assert len(set(names)) == len(names)
    assert names[1] == "x_0"
    assert names[3] == "a_b"


def test_an_expression_over_other_names_is_one() -> None:
    shapes = {"past": ("batch", 12, "past_len", 64), "mask": ("batch", "past_len + 1")}
    symbols = Symbols.of(_inputs(**shapes))
    assert symbols.shapes["mask"][1] == Dim.symbol("past_len") + 1
    # Over names that no input has, it is a name.
    alone = Symbols.of(_inputs(mask=("batch", "past_len + 1")))
    assert _text(alone, "mask") == ["batch", "past_len___1"]


def test_an_input_of_unknown_rank_has_no_shape() -> None:
    assert "x" not in Symbols.of(_inputs(x=None)).shapes


def test_annotations_are_read_over_the_known_symbols() -> None:
    symbols = Symbols.of(_inputs(x=("batch", 3)))
    read = [symbols.read(d) for d in (7, "batch", "64*batch", "unk__3", "batch*unk__3", None)]
    assert read == [7, Dim.symbol("batch"), 64 * Dim.symbol("batch"), None, None, None]


def test_bindings_are_those_of_the_given_shapes() -> None:
    inputs = _inputs(ids=("batch", "seq"), image=("batch", 3, None), extra=("other",))
    shapes = {"ids": (2, 128), "image": (2, 3, 224)}
    assert bindings(inputs, shapes) == {"batch": 2, "seq": 128, "image_2": 224}
    assert bindings(inputs, {}) == {}


def test_an_expression_binds_nothing() -> None:
    inputs = _inputs(past=("past_len",), mask=("past_len + 1",))
    assert bindings(inputs, {"mask": (9,)}) == {}
    assert bindings(inputs, {"mask": (9,), "past": (8,)}) == {"past_len": 8}


def test_two_sizes_for_one_symbol_are_an_error() -> None:
    with pytest.raises(UsageError) as error:
        bindings(_inputs(a=("batch", 3), b=("batch",)), {"a": (2, 3), "b": (4,)})
    message = str(error.value)
    assert "'batch' 2 in input a and 4 in input b" in message
    assert "\n" not in message
