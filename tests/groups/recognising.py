"""What the group tests share: recognising a small net, flat or normalized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from building import Net, as_model

from fusewright.graph.model import Model
from fusewright.match.matcher import Miss
from fusewright.normalize import normalize
from fusewright.plan.plan import Plan
from fusewright.plan.recognise import recognise

Build = Callable[[Net], str | tuple[str, ...]]


@dataclass(frozen=True)
class Row:
    """A net, and the kinds of its groups in topological order, or words of a reason."""

    build: Build
    expected: str
    opset: int = 17


def recognised(build: Build, opset: int = 17, *, normal: bool = True) -> tuple[Plan, list[Miss]]:
    net = Net(opset)
    outputs = build(net)
    model = as_model(net.proto(*((outputs,) if isinstance(outputs, str) else outputs)))
    if normal:
        normalize(model)
    plan, misses = recognise(model)
    assert_disjoint(model, plan)
    return plan, misses


def kinds(build: Build, opset: int = 17) -> str:
    plan, _ = recognised(build, opset)
    return " ".join(group.kind for group in plan.groups)


def assert_disjoint(model: Model, plan: Plan) -> None:
    """Every node belongs to at most one group, and what no group holds and is heavy is listed."""
    members = [name for group in plan.groups for name in group.members]
    assert len(members) == len(set(members))
    assert set(members) <= {node.name for node in model.graph.nodes}


def assert_kinds(row: Row) -> None:
    assert kinds(row.build, row.opset) == row.expected


def assert_refused(kind: str, row: Row) -> None:
    """No group of `kind`, for this reason, in the trace or with the unclaimed."""
    plan, misses = recognised(row.build, row.opset)
    assert kind not in plan.counts()
    reasons = {str(miss) for miss in misses if miss.pattern == kind}
    reasons |= {entry.reason for entry in plan.unclaimed}
    assert any(row.expected in reason for reason in reasons), reasons
