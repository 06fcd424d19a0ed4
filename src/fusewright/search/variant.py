"""How a placement differs from the one the rules made, and setting a plan to it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from fusewright.plan.decide import settle
from fusewright.plan.plan import Plan
from fusewright.quantize.placement import Placement, place


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
    def of(cls, plan: Plan, int8_residual: bool = False) -> Baseline:
        """Of a plan as it is now.

        `streams` are the tensors of the residual stream that can have a pair, `residual` those that
        the rules give one.
        """
        decided = {
            g.name: _Decided(g.decision, g.reason, g.inputs_to_quantize) for g in plan.groups
        }
        streams = stream_tensors(plan)
        return cls(decided, streams if int8_residual else frozenset(), streams)

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


def stream_tensors(plan: Plan) -> frozenset[str]:
    """The tensors of the residual stream that get a pair where the whole stream is quantized."""
    with_stream, without = place(plan, True), place(plan, False)
    return frozenset(_observed(with_stream) - _observed(without))


def observed(plan: Plan) -> tuple[str, ...]:
    """The tensors that some placement of the plan's groups observes, sorted.

    A variant quantizes no input that the rules do not, but for the residual stream.
    """
    return tuple(sorted(_observed(place(plan, True)) | _observed(place(plan, False))))


def _observed(placement: Placement) -> set[str]:
    return {name for tensors in placement.observe.values() for name in tensors}
