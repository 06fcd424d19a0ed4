"""Attention over more keys than any sample had: what is said of the result is not said of that."""

from __future__ import annotations

from collections.abc import Iterable

from fusewright.graph.dims import resolve
from fusewright.graph.session import Feed, TensorSpec
from fusewright.plan.plan import Plan

# Over twice as many keys the sum over v is about as large, and so is what is lost in it.
_FEW = 2


def unseen_lengths(plan: Plan, inputs: Iterable[TensorSpec], feeds: Iterable[Feed]) -> list[str]:
    """What the user should know of open numbers of keys that may get far larger.

    Ranges of few elements are narrow, and a sum over more keys is smaller beside its error: a
    result that has 32 dB on samples of 6 tokens may have 25 on 40.

    Args:
        plan: with the declared maxima.
        inputs: of the model.
        feeds: what the result is measured on.
    """
    seen: dict[str, int] = {}
    specs = list(inputs)
    for feed in feeds:
        for spec in specs:
            shape = feed[spec.name].shape if spec.name in feed else ()
            for dim, size in zip(spec.shape or (), shape, strict=False):
                if isinstance(dim, str):
                    seen[dim] = max(seen.get(dim, 0), size)
    lengths = (group.details.get("sequence", [0])[-1] for group in plan.groups if group.fixed)
    notes = []
    for length in dict.fromkeys(length for length in lengths if isinstance(length, str)):
        (most,), (declared,) = resolve([length], seen), resolve([length], plan.largest)
        if most is not None and (declared is None or declared > _FEW * most):
            may_be = "no maximum is declared" if declared is None else f"{declared} are declared"
            notes.append(
                f"attention over '{length}' keys was measured with {most} at most, and {may_be}:"
                " with more of them it may lose more; give samples as long as those in use"
            )
    return notes
