"""Targets: the grammar, the rows that reasons cite, and what is refused in one line."""

from __future__ import annotations

import pytest

from fusewright.errors import UsageError
from fusewright.pipeline.options import Options
from fusewright.target import FORMATS, TENSORRT, Precision, find_target
from fusewright.target.table import (
    ATTENTION,
    CONVOLUTION,
    ENGINES,
    GPUS,
    SUPPORT,
    WITHOUT_CONVOLUTIONS,
)

# Text → engine, SM, how a reason cites it.
FOUND = {
    "tensorrt": ("tensorrt-11", None, "TensorRT"),
    "tensorrt-8.6": ("tensorrt-8.6", None, "TensorRT 8.6"),
    "rtx4090": ("tensorrt-11", 89, "TensorRT on SM 89"),
    "sm89": ("tensorrt-11", 89, "TensorRT on SM 89"),
    "tensorrt-10:l4": ("tensorrt-10", 89, "TensorRT 10 on SM 89"),
    "tensorrt-10:v100": ("tensorrt-10", 70, "TensorRT 10 on SM 70"),
    "rtx:sm120": ("rtx", 120, "TensorRT-RTX on SM 120"),
    "tensorrt-rtx:RTX5090": ("rtx", 120, "TensorRT-RTX on SM 120"),
    "orin": ("tensorrt-11", 87, "TensorRT on SM 87"),
}
REFUSED = {
    "t5": "no target 't5'",
    "": "no target ''",
    "tensorrt-9": "no target",
    "rtx:": "no target 'rtx:'",
    ":l4": "no target ':l4'",
    "l4:tensorrt-10": "no target",
    "sm8": "no target",
    "sm88": "does not run on SM 88; it runs on 75, 80",
    "v100": "TensorRT does not run on SM 70",
    "rtx:h100": "TensorRT-RTX does not run on SM 90; it runs on 75, 80, 86, 89, 120, 121",
    "tensorrt-8.6:b200": "does not run on SM 100",
}


@pytest.mark.parametrize("text", FOUND)
def test_found(text: str) -> None:
    target = find_target(text)
    assert (target.engine.name, target.sm, str(target)) == FOUND[text]
    again = find_target(target.name)
    assert (again.engine, again.sm) == (target.engine, target.sm)


@pytest.mark.parametrize("text", REFUSED)
def test_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_target(text)
    message = str(caught.value)
    assert REFUSED[text] in message and "\n" not in message
    if "no target" in message:
        assert all(name in message for name in (*GPUS, *(row.name for row in ENGINES)))


@pytest.mark.parametrize(
    ("target", "has", "lacks"),
    [
        ("tensorrt-8.6:orin", "int8 fp16", "fp8 int4 bf16 nvfp4"),
        ("tensorrt-10:t4", "int8 fp16", "fp8 int4 bf16 mxfp8"),
        ("tensorrt-10:a100", "int8 fp16 bf16 int4", "fp8 nvfp4"),
        ("tensorrt-11:l4", "int8 fp16 bf16 int4 fp8", "nvfp4 mxfp8"),
        ("tensorrt-11:b200", "int8 fp16 bf16 int4 fp8 nvfp4 mxfp8", ""),
        ("rtx:sm86", "int8 int4", "fp8"),
        ("rtx:gb10", "fp8 nvfp4", ""),
        ("tensorrt", "fp8 int4 nvfp4", ""),
    ],
)
def test_formats_of_a_target(target: str, has: str, lacks: str) -> None:
    found = find_target(target)
    assert [name for name in has.split() if not found.has(name)] == []
    assert [name for name in lacks.split() if found.has(name)] == []


def test_what_is_missing_says_what_is_there() -> None:
    target = find_target("tensorrt-10:t4")
    assert target.lacks("int8") is None
    wanted = "TensorRT 10 on SM 75 has no FP8 (it begins with SM 89); it has FP16, INT8, FP32"
    assert target.lacks("fp8") == wanted
    assert find_target("tensorrt-8.6").lacks("fp8") == (
        "TensorRT 8.6 has no FP8; it has FP16, INT8, FP32"
    )


@pytest.mark.parametrize(
    ("target", "precision", "words"),
    [
        ("t4", "fp8+fp16", "precision fp8+fp16: TensorRT on SM 75 has no FP8"),
        ("t4", "int8+bf16", "has no BF16 (it begins with SM 80)"),
        ("tensorrt-8.6", "int4", "TensorRT 8.6 has no INT4"),
        ("tensorrt-8.6", "int8+fp16", "needs 19: take int8, and allow FP16 when building"),
    ],
)
def test_a_precision_that_is_not_there(target: str, precision: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Options(target=target, precision=precision)
    assert words in str(caught.value)


@pytest.mark.parametrize("target", ["t4", "tensorrt-8.6", "rtx:sm75", "tensorrt-10:v100"])
def test_the_default_precision_is_always_there(target: str) -> None:
    found = find_target(target)
    assert found.refusal(found.default_precision) is None
    assert found.refusal(Precision.parse("fp16")) is None


def test_a_gpu_left_open_is_named_where_a_format_asks_for_one() -> None:
    assert TENSORRT.needs("int8") is None
    assert str(TENSORRT.needs("fp8")).startswith("FP8 needs SM 89 or newer (l4, ")
    assert find_target("l4").needs("fp8") is None


def test_without_local_functions_groups_stay_nodes() -> None:
    assert Options(target="tensorrt-8.6").flat
    assert not Options(target="tensorrt-10").flat


@pytest.mark.parametrize(
    ("settings", "opset"),
    [
        ({"precision": "int8"}, 13),
        ({"precision": "fp16"}, 13),
        ({"precision": "fp8"}, 19),
        ({"precision": "int8+fp16"}, 19),
        ({"precision": "int8", "group_precision": ("a=float", "b=fp8")}, 19),
        ({"precision": "int4"}, 21),
    ],
)
def test_opset_of_the_result(settings: dict[str, object], opset: int) -> None:
    assert Options().with_settings(settings).min_opset == opset


def test_every_row_names_its_source_and_a_known_engine() -> None:
    rows = (*ENGINES, *SUPPORT, *WITHOUT_CONVOLUTIONS, *ATTENTION.values(), *CONVOLUTION.values())
    assert all(row.source for row in rows)
    assert {row.engine for row in SUPPORT} == {row.name for row in ENGINES}
    assert len({(row.engine, row.what) for row in SUPPORT}) == len(SUPPORT)
    assert set(FORMATS) <= {row.what for row in SUPPORT}
    everywhere = {sm for row in SUPPORT for sm in row.sms}
    assert set(GPUS.values()) <= everywhere
