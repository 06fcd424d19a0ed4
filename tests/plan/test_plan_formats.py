"""Formats beside INT8: what each group can be on which target, and mixed plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attending import found_in, group_of, proto_of, self_attention
from building import Net
from planning import plan_of

from fusewright.errors import PlanError, UsageError
from fusewright.graph.layout import region_behind
from fusewright.plan.decide import Rules, decide
from fusewright.plan.file import apply_plan_file, formats_in, write_plan
from fusewright.plan.plan import FLOAT, OFF, Group, Plan, node_index
from fusewright.quantize.between import kept_float
from fusewright.target import find_target
from fusewright.target.table import ATTENTION

Spell = Callable[[Net], str]


def _net(net: Net) -> str:
    """Three convolutions of different kinds, a residual, a pool and a classifier."""
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 16, 16), 16, 4, name="stem"), name="stem_act")
    y = net.op("Relu", net.conv(x, 16, 16, name="grouped", group=4))
    y = net.op("Relu", net.conv(y, 16, 16, 7, name="large"))
    y = net.op("Relu", net.op("Add", net.conv(y, 16, 16, name="block"), x, name="add"), name="act")
    pooled = net.op("Flatten", net.op("GlobalAveragePool", y, name="pool"))
    return net.op("Gemm", pooled, net.draw(16, 32), net.draw(32), name="head")


def _decisions(rules: Rules, build: Spell = _net) -> dict[str, str]:
    return {group.name: group.decision for group in plan_of(build, rules).groups}


def _reason(plan: Plan, name: str) -> str:
    return plan.group(name).reason


def test_fp8_leaves_grouped_and_large_convolutions_float() -> None:
    plan = plan_of(_net, Rules(quantized="fp8"))
    found = {group.name: group.decision for group in plan.groups}
    assert found == {
        "stem": "fp8",
        "grouped": FLOAT,
        "large": FLOAT,
        "block": "fp8",
        "pool": FLOAT,
        "head": "fp8",
    }
    assert _reason(plan, "grouped") == "a grouped convolution: TensorRT has none in FP8"
    assert _reason(plan, "large") == (
        "a kernel of 7x7: TensorRT runs FP8 convolutions of up to 32 elements"
    )
    assert _reason(plan, "head").endswith("weights per channel (axis 1)")
    assert plan.model.notes == ["FP8 needs SM 89 or newer (l4, l40, l40s, rtx4090, rtx6000ada, …)"]
    assert {g.smooth for g in plan.groups if g.decision == "fp8"} == {OFF}


def test_a_named_gpu_needs_no_note() -> None:
    plan = plan_of(_net, Rules(quantized="fp8", target=find_target("l4")))
    assert plan.model.notes == []


def test_notes_of_an_old_engine() -> None:
    plan = plan_of(_net, Rules(target=find_target("tensorrt-8.6:t4")))
    assert "TensorRT 8.6 on SM 75 parses no local functions: groups stay nodes" in plan.model.notes


def test_rtx_has_no_int8_convolution_on_turing() -> None:
    plan = plan_of(_net, Rules(target=find_target("rtx:t4")))
    assert {g.name for g in plan.groups if g.is_quantized} == {"head"}
    assert _reason(plan, "block") == "TensorRT-RTX on SM 75 runs no INT8 convolution"
    for other in ("rtx", "rtx:sm86", "tensorrt-10:t4"):
        assert plan_of(_net, Rules(target=find_target(other))).group("block").is_quantized


def test_int4_is_for_the_weights_of_linears() -> None:
    plan = plan_of(_net, Rules(quantized="int4"))
    assert {g.name for g in plan.groups if g.decision == "int4"} == {"head"}
    assert not plan.group("head").reads_quantized and plan.group("head").is_quantized
    assert _reason(plan, "block") == "INT4 is for the weights of Linears"
    assert (
        _reason(plan, "head") == "its contract: weights in INT4, blocks of up to 128; inputs float"
    )


def test_nothing_is_quantized_without_a_format() -> None:
    plan = plan_of(_net, Rules(quantized=None))
    assert {group.decision for group in plan.groups} == {FLOAT}
    assert {group.reason for group in plan.groups} == {"precision int8"}  # the plan's own text


MIXED = {
    "one group": (("head=fp8",), {"head": "fp8", "block": "int8"}),
    "operators": (("op:Conv=fp8",), {"stem": "fp8", "grouped": FLOAT, "head": "int8"}),
    "the last holds": (("*=fp8", "head=int4"), {"stem": "fp8", "head": "int4"}),
    "float": (("st*=float",), {"stem": FLOAT, "block": "int8"}),
}


@pytest.mark.parametrize(("requests", "expected"), MIXED.values(), ids=list(MIXED))
def test_group_precision(requests: tuple[str, ...], expected: dict[str, str]) -> None:
    found = _decisions(Rules(group_precision=requests))
    assert {name: found[name] for name in expected} == expected


def test_group_precision_where_nothing_else_is_quantized() -> None:
    found = _decisions(Rules(quantized=None, group_precision=("head=fp8",)))
    assert {name for name, decision in found.items() if decision != FLOAT} == {"head"}


def test_exclude_beats_group_precision() -> None:
    assert _decisions(Rules(exclude=("head",), group_precision=("head=fp8",)))["head"] == FLOAT


REFUSED = {
    "no group": (("nothing=fp8",), "--group-precision 'nothing=fp8' matches no group"),
    "no format": (
        ("head",),
        "is not PATTERN=FORMAT with one of int8, fp8, int4, nvfp4, mxfp8, float",
    ),
    "no such format": (("head=int9",), "is not PATTERN=FORMAT"),
    "no pattern": (("=fp8",), "is not PATTERN=FORMAT"),
    "not this group": (("large=fp8",), "group 'large' cannot be fp8: a kernel of 7x7"),
    "not without weights": (("op:GlobalAveragePool=fp8",), "group 'pool' cannot be fp8"),
    "not in four bits": (("op:Conv=int4",), "cannot be int4: INT4 is for the weights of Linears"),
    "not on the target": (("head=fp8",), "TensorRT on SM 80 has no FP8 (it begins with SM 89)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_group_precision_that_cannot_be(case: str) -> None:
    requests, words = REFUSED[case]
    target = find_target("a100" if "target" in case else "l4")
    with pytest.raises(UsageError) as caught:
        plan_of(_net, Rules(target=target, group_precision=requests))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_plan_file_carries_formats(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    mixed = plan_of(_net, Rules(quantized="fp8", group_precision=("stem=int8", "head=int4")))
    write_plan(mixed, path)
    assert formats_in(path) == {"int8", "fp8", "int4"}
    fresh = plan_of(_net)
    apply_plan_file(fresh, path)
    assert [g.decision for g in fresh.groups] == [g.decision for g in mixed.groups]
    for target, words in (("t4", "has no FP8"), ("tensorrt-8.6", "TensorRT 8.6 has no")):
        other = plan_of(_net, Rules(target=find_target(target)))
        with pytest.raises(PlanError, match=words):
            apply_plan_file(other, path)


def test_weights_per_tensor() -> None:
    plan = plan_of(_net, Rules(per_tensor_weights=True))
    assert _reason(plan, "head").endswith("weights per tensor")


@pytest.mark.parametrize(("channels", "shown"), [(8, "8 and 8 input"), (16, ""), (32, "")])
def test_small_convolutions_are_hinted_at(channels: int, shown: str) -> None:
    def build(net: Net) -> str:
        return net.conv(net.input("x", 1, channels, 8, 8), channels, channels, name="conv")

    (group,) = plan_of(build).groups
    assert group.decision == "int8"  # a hint decides nothing
    assert group.hint.startswith(shown) and bool(group.hint) == bool(shown)
    assert ("hint" in group.to_dict()) == bool(shown)


SIZES = {
    ("int8", 16): None,
    ("int8", 24): "head size 24: TensorRT fuses INT8 attention of sizes 16, 32, 64 only",
    ("fp8", 24): None,
    ("fp8", 256): None,
    ("fp8", 20): "head size 20: TensorRT fuses FP8 attention of sizes 16 to 256 in steps of 8",
    ("fp8", 264): "head size 264: TensorRT fuses FP8 attention of sizes 16 to 256 in steps of 8",
    ("int4", 32): "INT4 is for weights, and it has none",
}


@pytest.mark.parametrize("case", SIZES, ids=str)
def test_attention_by_format(case: tuple[str, int]) -> None:
    form, size = case
    core, _ = _core("tensorrt", form, head_size=size, sequence=[64])
    assert core.decision == (form if SIZES[case] is None else FLOAT)
    assert SIZES[case] in (None, core.reason)


LENGTHS = {
    ("int8", 1024): "a sequence of 1024 tokens: TensorRT fuses INT8 attention up to 512",
    ("int8", 16): None,
    ("fp8", 1024): None,
    ("fp8", 32): None,
    ("fp8", "length"): None,
    ("fp8", 31): "a sequence of 31 tokens: TensorRT fuses FP8 attention from 32 on",
}


@pytest.mark.parametrize("case", LENGTHS, ids=str)
def test_sequences_by_format(case: tuple[str, int | str]) -> None:
    form, length = case
    core, _ = _core("tensorrt", form, head_size=64, sequence=[64, length])
    assert core.decision == (form if LENGTHS[case] is None else FLOAT)
    assert LENGTHS[case] in (None, core.reason)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("tensorrt-10:v100", "TensorRT 10 on SM 70 fuses no INT8 attention"),
        ("tensorrt-8.6:xavier", "TensorRT 8.6 on SM 72 fuses no INT8 attention"),
    ],
)
def test_attention_needs_its_gpu(target: str, words: str) -> None:
    core, _ = _core(target, "int8", head_size=64)
    assert (core.decision, core.reason) == (FLOAT, words)


RESTS = {
    # What is between its pairs: the rest's type or, with the reason, FP32.
    ("int8", "fp16"): None,
    ("int8", "fp32"): None,
    ("int8", "bf16"): "FP32 between its pairs: TensorRT fuses no INT8 attention with BF16 there",
    ("fp8", "bf16"): None,
}


@pytest.mark.parametrize("case", RESTS, ids="+".join)
def test_attention_by_the_rest(case: tuple[str, str]) -> None:
    form, rest = case
    core, plan = _core("tensorrt", form, f"{form}+{rest}", head_size=64, sequence=[64])
    assert core.decision == form
    expected = RESTS[case]
    assert kept_float(plan) == ({} if expected is None else dict.fromkeys(core.members, expected))
    assert core.reason.startswith("its contract: inputs ")
    assert core.reason.endswith(f"; {expected}") == (expected is not None)


def test_attention_that_no_rest_suits() -> None:
    core, plan = _core("tensorrt", "int8", "int8+bf16", head_size=64, sequence=[64])
    halves = replace(ATTENTION["int8"], rests=("fp16",))
    decide(plan, Rules(target=replace(find_target("tensorrt"), attention={"int8": halves})))
    assert core.decision == FLOAT
    assert core.reason == "a BF16 rest: TensorRT fuses INT8 attention with FP16 only"
    assert kept_float(plan) == {}


def test_float_readers_leave_fp8_attention_as_it_is() -> None:
    """Its output pair is optional in FP8; INT8 attention goes float with its readers."""
    for form, decision in (("int8", FLOAT), ("fp8", "fp8")):
        core, plan = _core("tensorrt", form, head_size=64, sequence=[64])
        (reader,) = [g for g in plan.groups if core.outputs[0] in _behind(g, plan)]
        decide(plan, Rules(quantized=form, exclude=(reader.name,)))
        assert (reader.decision, core.decision) == (FLOAT, decision)


def _behind(group: Group, plan: Plan) -> set[str]:
    """What a group reads, through layout operators too."""
    nodes = node_index(plan.model.graph)
    tensors = {t.name: t for n in nodes.values() for t in n.inputs}
    region = region_behind([tensors[name] for name in group.inputs], plan.model.opset)
    return {t.name for t in region.sources}


def _core(target: str, form: str, precision: str = "int8", **details: Any) -> Any:
    """The attention of a small net, said to be of another size, and its plan."""
    plan, _ = found_in(proto_of(self_attention))
    core = group_of(plan, "ScaledDotProductAttention")
    core.details.update(details)
    plan.precision = precision
    decide(plan, Rules(target=find_target(target), quantized=form))
    return core, plan


@pytest.mark.parametrize(
    ("form", "why"),
    [("nvfp4", "NVFP4 is for the weights of Linears"), ("int4", "INT4 is for the weights of")],
)
def test_a_note_where_nothing_is_quantized(form: str, why: str) -> None:
    rules = Rules(quantized=form)
    plan = plan_of(lambda net: net.conv(net.input("x", 1, 3, 8, 8), 4, 3), rules)
    (note,) = [note for note in plan.model.notes if note.startswith("nothing")]
    assert note.startswith(f"nothing is quantized to {form.upper()}: {why}")
    plan = plan_of(lambda net: net.op("MatMul", net.input("x", 4, 32), net.draw(32, 8)), rules)
    assert not [note for note in plan.model.notes if note.startswith("nothing")]
