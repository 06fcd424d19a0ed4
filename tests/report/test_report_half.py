"""The report's part on a half rest: nodes kept FP32 by sort, short unless asked for more."""

from __future__ import annotations

import io

import pytest
from building import Net
from rich.console import Console

from fusewright.normalize import normalize
from fusewright.plan.decide import Rules, decide
from fusewright.plan.plan import Plan
from fusewright.plan.recognise import recognise
from fusewright.precision import HalfPlan
from fusewright.precision.constants import Bounds
from fusewright.report.half_tables import half_section, measured_on

SUMS = {f"sum{i}": f"sums up {256 + i} elements" for i in range(3)}
OTHERS = {f"n{i}": f"{text} FP32" for i, text in enumerate("abcde")}


def _text(half: HalfPlan, overflows: tuple[str, ...] = (), verbose: bool = False) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    for part in half_section(half, overflows, 78, verbose):
        console.print(part)
    return " ".join(console.export_text().split())


def _plan(kept: dict[str, str], kind: str = "fp16", rewrites: dict | None = None) -> HalfPlan:
    return HalfPlan(kind, kept, rewrites or {}, frozenset({"one", "two"}))


def test_reasons_that_differ_in_a_number_only_are_one_sort() -> None:
    text = _text(_plan({"other": "an angle", **SUMS}))
    assert text.startswith("Precision 2 nodes in FP16 kept FP32: 3 sums up … elements sum0, sum1")
    assert "and 1 more kept FP32: 1 an angle other" in text


def test_a_number_is_shown_where_there_is_but_one() -> None:
    assert "kept FP32: 1 sums up 256 elements sum0" in _text(_plan({"sum0": SUMS["sum0"]}))


def test_few_sorts_unless_verbose() -> None:
    half = _plan({**SUMS, **OTHERS})
    short, long = _text(half), _text(half, verbose=True)
    assert short.endswith("kept FP32: 2 more for 2 reasons (-v)")
    assert "e FP32 n4" not in short and "e FP32 n4" in long and "(-v)" not in long


def test_nothing_is_kept() -> None:
    assert _text(_plan({}, "bf16")) == "Precision 2 nodes in BF16"


def test_rewritten_numbers_are_no_nodes_kept() -> None:
    half = _plan({}, rewrites={("mask", 1): Bounds(0.0, 49128.0, "a mask")})
    assert _text(half) == ("Precision 2 nodes in FP16 stored numbers brought into FP16's range: 1")
    assert "mask:1: magnitudes from 0 to 49128, a mask" in _text(half, verbose=True)
    assert half.lines() == [f"{place}: {what}" for place, what in half.rewritten().items()]


def test_what_overflows_is_named_first() -> None:
    text = _text(_plan(SUMS), ("wide",))
    assert text.startswith("Precision 2 nodes in FP16 not finite in FP16 on a sample 'wide'")


@pytest.mark.parametrize(
    ("kind", "why"), [("fp16", "computes FP16 partly in FP32"), ("bf16", "has no BF16 convolution")]
)
def test_what_it_was_measured_on(kind: str, why: str) -> None:
    (text,) = measured_on(_plan({}, kind), _decided("int8"))
    assert f"an FP32 twin that rounds to {kind.upper()} after each op" in text and why in text


def test_what_onnxruntime_has_no_operators_for() -> None:
    assert measured_on(None, _decided("int8")) == ()
    (text,) = measured_on(None, _decided("nvfp4"))
    assert text.startswith("NVFP4 in FP32 operators")


def _decided(form: str) -> Plan:
    net = Net(23)
    model = net.model(net.op("MatMul", net.input("x", 4, 32), net.draw(32, 8)))
    normalize(model)
    plan, _ = recognise(model)
    decide(plan, Rules(quantized=form))
    return plan
