"""A short run of each kind, on seeds of its own; `tools/fuzz` is the long one."""

from __future__ import annotations

from collections.abc import Callable

import data_cases
import file_cases
import graph_cases
import pytest
from cases import Outcome

Look = Callable[[int], Outcome]


# Each seed is a test of its own: xdist shares them out, and a failure names the seed that
# `tools/fuzz 1 --seed N --kind …` looks at again, and makes small.
CASES: list[tuple[Look, int]] = [
    *((graph_cases.look, seed) for seed in range(434, 458)),
    *((file_cases.look, seed) for seed in range(16)),
    *((data_cases.look, seed) for seed in range(20, 50)),
]


@pytest.mark.parametrize(("look", "seed"), CASES)
def test_nothing_is_found(look: Look, seed: int) -> None:
    assert look(seed).findings == []
