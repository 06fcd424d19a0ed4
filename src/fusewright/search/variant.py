"""How a placement differs from the one the rules made, and setting a plan to it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from fusewright.plan.decide import settle
from fusewright.plan.plan import Plan
from fusewright.quantize.placement import Placement, place
from fusewright.quantize.residual import stream_tensors


@dataclass(frozen=True)
class Variant:
    """The difference; without arguments, none.

    Attributes:
        decisions: (group, decision), sorted, of the groups that are decided otherwise.
        skips: groups that read their skip, the second input of a residual Add, in float.
        residual: tensors of a transformer's residual stream that get a pair where the rules give
            none, or none where they give one.
    """

    decisions: tuple[tuple[str, str], ...] = ()
    skips: frozenset[str] = frozenset()
    residual: frozenset[str] = frozenset()

    def plus(self, other: Variant) -> Variant:
        """Both; where the two decide one group, `other` holds."""
        decided = dict(self.decisions) | dict(other.decisions)
        return Variant(
            tuple(sorted(decided.items())),
            self.skips | other.skips,
            self.residual | other.residual,
        )

    def is_part_of(self, other: Variant) -> bool:
        """Whether `other` changes all that this does, in the same way, and more."""
        inside = set(self.decisions) <= set(other.decisions) and self.skips <= other.skips
        return inside and self.residual <= other.residual and self != other

    def key(self) -> str:
        """The same text for the same variant."""
        parts = [list(self.decisions), sorted(self.skips), sorted(self.residual)]
        return json.dumps(parts, separators=(",", ":"))


@dataclass(frozen=True)
class _Decided:
    decision: str
    reason: str
    inputs_to_quantize: tuple[int, ...]


@dataclass(frozen=True)
class Baseline:
    """What the rules decided, kept while a search changes the plan."""

    decided: dict[str, _Decided]
    residual: frozenset[str]
    streams: frozenset[str]

    @classmethod
    def of(cls, plan: Plan) -> Baseline:
        """Of a plan as it is now.

        `streams` are the tensors of the residual stream that can have a pair, `residual` those that
        the plan gives one.
        """
        decided = {
            g.name: _Decided(g.decision, g.reason, g.inputs_to_quantize) for g in plan.groups
        }
        return cls(decided, plan.residual or frozenset(), stream_tensors(plan))

    def set(self, plan: Plan, variant: Variant = Variant()) -> Placement:
        """Sets every group of the plan to the variant, in place, and says where the pairs are."""
        changed = dict(variant.decisions)
        for group in plan.groups:
            was = self.decided[group.name]
            group.decision = changed.get(group.name, was.decision)
            group.reason, group.inputs_to_quantize = was.reason, was.inputs_to_quantize
            if group.name in variant.skips:
                group.inputs_to_quantize = was.inputs_to_quantize[:1]
        settle(plan)
        return place(plan, self.residual ^ variant.residual)

    def keep(self, plan: Plan, variant: Variant) -> Placement:
        """As `set`, for good: the plan then says all that gives this placement again."""
        placement = self.set(plan, variant)
        for group in plan.groups:
            was = self.decided[group.name].decision
            if group.decision != was and group.prepared_as is None:
                group.prepared_as = was
        plan.residual = (self.residual ^ variant.residual) & stream_tensors(plan)
        return placement


def observed(plan: Plan) -> tuple[str, ...]:
    """The tensors that some placement of the plan's groups observes, sorted.

    A variant quantizes no input that the rules do not, but for the residual stream.
    """
    with_stream = place(plan, stream_tensors(plan))
    return tuple(sorted(_observed(with_stream) | _observed(place(plan))))


def _observed(placement: Placement) -> set[str]:
    return {name for tensors in placement.observe.values() for name in tensors}
