"""Precisions: every text gives its form and back; anything else is one clear line."""

from __future__ import annotations

import pytest

from fusewright.errors import UsageError
from fusewright.pipeline.options import Options
from fusewright.target import PRECISIONS, Precision


@pytest.mark.parametrize("text", PRECISIONS)
def test_text_and_back(text: str) -> None:
    assert Precision.parse(text).text == text


@pytest.mark.parametrize(
    ("text", "quantized", "rest"),
    [
        ("int8", "int8", "fp32"),
        ("int8+fp32", "int8", "fp32"),
        ("int8+fp16", "int8", "fp16"),
        ("int8+bf16", "int8", "bf16"),
        ("fp8", "fp8", "fp32"),
        ("int4+fp16", "int4", "fp16"),
        ("fp16", None, "fp16"),
        ("fp32", None, "fp32"),
        ("INT8", "int8", "fp32"),
        ("Int4+FP16", "int4", "fp16"),
        ("BF16 ", None, "bf16"),
    ],
)
def test_parts(text: str, quantized: str | None, rest: str) -> None:
    assert Precision.parse(text) == Precision(quantized, rest)


@pytest.mark.parametrize("text", ["int9", "", "int8+", "+fp16", "fp16+int8", "INT 8", "int8+fp8"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not one of int8[+]fp16, .*fp32$") as caught:
        Precision.parse(text)
    assert str(caught.value).startswith(f"precision '{text}'")


def test_options_take_all_of_them() -> None:
    assert Options().formats == Precision("int8", "fp16")
    assert Options(precision="fp8+fp16").formats == Precision("fp8", "fp16")
    assert Options(precision="FP8+FP16").formats == Precision("fp8", "fp16")
    assert Options(group_precision=("*=INT4",)).min_opset == 21
    with pytest.raises(UsageError, match="precision 'int9' is not one of"):
        Options(precision="int9")
