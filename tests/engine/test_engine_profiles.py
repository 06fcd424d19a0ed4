"""Which shapes an engine is built for, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from fusewright.engine.profiles import choose_profiles
from fusewright.errors import EngineError, UsageError
from fusewright.graph.session import TensorSpec


def _spec(*shape: int | str | None, name: str = "x") -> TensorSpec:
    return TensorSpec(name, np.dtype(np.float32), shape)


def test_a_static_input_needs_no_profile() -> None:
    assert choose_profiles([_spec(1, 3)], {}) == ({}, ())
    same = ((1, 3), (1, 3), (1, 3))
    assert choose_profiles([_spec(1, 3)], {"x": same}) == ({}, ())


@pytest.mark.parametrize("batch", ["N", None])
def test_a_dynamic_batch_alone_becomes_one_and_says_so(batch: str | None) -> None:
    profiles, notes = choose_profiles([_spec(batch, 3, 8), _spec(2, name="y")], {})
    assert profiles == {"x": ((1, 3, 8), (1, 3, 8), (1, 3, 8))}
    assert len(notes) == 1 and "batch 1" in notes[0] and "--shapes" in notes[0]


def test_declared_shapes_are_taken() -> None:
    declared = ((1, 3, 8), (4, 3, 16), (8, 3, 32))
    assert choose_profiles([_spec("N", 3, "W")], {"x": declared}) == ({"x": declared}, ())


NO_RANK = TensorSpec("x", np.dtype(np.float32), None)


@pytest.mark.parametrize("spec", [_spec("N", 3, "W"), _spec(1, 3, "W"), NO_RANK])
def test_other_dynamic_dimensions_must_be_declared(spec: TensorSpec) -> None:
    with pytest.raises(EngineError, match=r"input 'x' .*--shapes x:MIN:OPT:MAX"):
        choose_profiles([spec], {})


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"z": ((1, 3),) * 3}, r"'z'.*inputs are x"),
        ({"x": ((1, 4),) * 3}, r"x:1x4 does not fit input 'x' \[N,3\]"),
        ({"x": ((1, 3, 1),) * 3}, "does not fit"),
        ({"x": ((4, 3), (2, 3), (8, 3))}, "MIN <= OPT <= MAX"),
        ({"x": ((1, 3), (9, 3), (8, 3))}, "MIN <= OPT <= MAX"),
    ],
)
def test_shapes_that_cannot_be(shapes: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        choose_profiles([_spec("N", 3)], shapes)


def test_ranks_must_agree_where_the_model_declares_none() -> None:
    with pytest.raises(UsageError, match="MIN <= OPT <= MAX"):
        choose_profiles([NO_RANK], {"x": ((1, 3), (1, 3, 4), (1, 3))})
