"""What the tables of the normalizer tests are made of, and what is checked of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import pytest
from building import Net, as_model, assert_equal, ops

from fusewright.graph.model import Model
from fusewright.match.matcher import Matcher
from fusewright.normalize import RULES, Outcome, Rule, normalize


@dataclass(frozen=True)
class Row:
    """One spelling.

    `expected` is the operators behind normalizing where it must be rewritten, and words of the
    reason where it must not.
    """

    build: Callable[[Net], str | tuple[str, ...]]
    expected: str
    opset: int = 17

    def proto(self) -> onnx.ModelProto:
        net = Net(self.opset)
        outputs = self.build(net)
        return net.proto(*((outputs,) if isinstance(outputs, str) else outputs))


def by_rule(tables: Mapping[str, Mapping[str, Row]]) -> list[Any]:
    """(rule, row) of every table, as pytest parameters."""
    return [
        pytest.param(rule, row, id=f"{rule} {name}")
        for rule, rows in tables.items()
        for name, row in rows.items()
    ]


def rewrite(proto: onnx.ModelProto) -> tuple[Model, dict[str, Outcome]]:
    model = as_model(proto)
    outcomes = normalize(model)
    assert_equal(proto, model)
    return model, {outcome.rule: outcome for outcome in outcomes}


def assert_rewritten(row: Row) -> Model:
    model, _ = rewrite(row.proto())
    assert ops(model) == row.expected, ops(model)
    assert_normal(model)
    return model


def assert_normal(model: Model) -> None:
    """Normalizing twice is normalizing once."""
    assert [outcome.rule for outcome in normalize(model) if outcome.applied] == []


def rewritten(proto: onnx.ModelProto) -> tuple[Model, dict[str, Outcome]]:
    """The normalized model, which computes the same, and what each rule did."""
    model, outcomes = rewrite(proto)
    assert_normal(model)
    return model, outcomes


def assert_left_alone(rule_name: str, row: Row) -> None:
    rule = next(rule for rule in RULES if rule.name == rule_name)
    model, outcomes = rewrite(row.proto())
    assert outcomes[rule_name].applied == []
    reasons = {str(miss) for miss in (*outcomes[rule_name].misses, *_misses(rule, model))}
    assert any(row.expected in reason for reason in reasons), reasons


def _misses(rule: Rule, model: Model) -> list[str]:
    """Why the pattern does not hold at any node; the trace leaves out misses of depth one."""
    matcher = Matcher(rule.name, rule.pattern, model.opset, model.graph.outputs)
    found = []
    for node in model.graph.nodes:
        if matcher.at(node) is None and matcher.miss is not None:
            found.append(str(matcher.miss))
    return found
