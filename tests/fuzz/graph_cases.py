"""One random graph through the tool; a failure made small by leaving out steps of its recipe."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from asking import Asked, draw_asked
from cases import Outcome
from judging import Verdict, judge
from recipe import Recipe, build, draw_recipe

# Seconds that making one failure small may take.
_PATIENCE = 20.0


def look(seed: int, precision: str | None = None, *, shrink: bool = False) -> Outcome:
    """Draws and judges; what fails is made small, where that is asked for."""
    recipe, asked = draw_recipe(seed), draw_asked(seed, precision)
    verdict = _judged(recipe, asked)
    kinds = {finding.kind for finding in verdict.findings}
    if kinds and shrink:
        recipe, asked = _shrunk(recipe, asked, kinds)
    return Outcome(
        seed,
        [(f.kind, f.detail) for f in verdict.findings],
        verdict.skipped,
        asked.precision,
        f"{recipe} {dict(asked.settings)}" if kinds and shrink else "",
    )


def _judged(recipe: Recipe, asked: Asked) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        return judge(build(recipe), asked, Path(folder))


def _shrunk(recipe: Recipe, asked: Asked, kinds: set[str]) -> tuple[Recipe, Asked]:
    """The first of the smaller ones that fails alike, and so on until none does."""
    end, found = time.monotonic() + _PATIENCE, True
    while found and time.monotonic() < end:
        found = False
        for one, other in _smaller(recipe, asked):
            if time.monotonic() > end:
                break
            if kinds & {f.kind for f in _judged(one, other).findings}:
                recipe, asked, found = one, other, True
                break
    return recipe, asked


def _smaller(recipe: Recipe, asked: Asked) -> Iterator[tuple[Recipe, Asked]]:
    for field in ("disguises", "blocks"):
        steps = getattr(recipe, field)
        for i in range(len(steps)):
            yield replace(recipe, **{field: steps[:i] + steps[i + 1 :]}), asked
    if recipe.tail[0] != "plain_end":
        yield replace(recipe, tail=("plain_end", 0)), asked
    for name in asked.settings:
        left = {k: v for k, v in asked.settings.items() if k != name}
        yield recipe, replace(asked, settings=left)
