"""What the plan tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from building import Net, as_model

from fusewright.normalize import normalize
from fusewright.plan.decide import Rules, decide
from fusewright.plan.plan import Plan
from fusewright.plan.recognise import recognise

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "models" / "digits_cnn.onnx"
_ALL = Rules()


def planned(proto: onnx.ModelProto, rules: Rules = _ALL, *, clean: bool = False) -> Plan:
    model = as_model(proto, clean=clean)
    outcomes = normalize(model)
    plan, _ = recognise(model, known_misses=[miss for o in outcomes for miss in o.misses])
    decide(plan, rules)
    return plan


def plan_of(build: Callable[[Net], str | tuple[str, ...]], rules: Rules = _ALL) -> Plan:
    net = Net()
    outputs = build(net)
    return planned(net.proto(*((outputs,) if isinstance(outputs, str) else outputs)), rules)
