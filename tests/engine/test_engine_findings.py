"""What could be better in a plan: each mistake gives its own cause, and a good file gives none."""

from __future__ import annotations

from pathlib import Path

import finding_models
import onnx
import pytest

from fusewright.engine.advice import ADVICE
from fusewright.engine.build import BuildOptions, build
from fusewright.engine.describe import Description, describe
from fusewright.engine.kernels import Kernel, TensorType
from fusewright.engine.outline import Outline
from fusewright.engine.report import EngineReport

RTX = BuildOptions(backend="tensorrt_rtx")

# File → causes in its plan that are no part of every plan.
EXPECTED = {
    "resize": {"split-epilogue"},
    "average": {"does-not-commute"},
    "concat": {"concat-scales"},
    "weight only": {"weight-dequantized", "weight-only"},
    "grouped": {"split-epilogue"},
    "float reader": {"split-epilogue"},
    "shared": {"shared-in-float"},
    "output": {"dequantizes-output"},
    "squeeze": {"does-not-commute", "split-epilogue"},
    "transposed": {"moved-by-node"},
    "norm": set(),
    "norm before conv": set(),
    "norm before int8": {"norm-before-quantized-conv"},
    "norm before windows": {"norm-moved"},
}
USUAL = {"quantizes-input", "layout-at-border"}
ATTENTIONS = {
    "fused": None,
    "scale": None,
    "half": None,
    "head size": ("attention-head-size", "head size 40, 64 tokens"),
    "sequence": ("attention-sequence", "head size 32, 600 tokens"),
    "softmax": ("attention-softmax", "head size 32"),
    "output": ("attention-output", "head size 32"),
    "mixed": ("attention-mixed", "head size 32"),
    "float": ("attention-float", "head size 32"),
    "half head size": ("attention-head-size", "head size 320"),
    "mask": ("attention-mask", "head size 32"),
    "half mask": ("attention-mask", "head size 32"),
}


def _built(model: onnx.ModelProto, folder: Path) -> EngineReport:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    onnx.save(model, folder / "model.onnx")
    return build(folder / "model.onnx", None, RTX)


@pytest.mark.parametrize("name", finding_models.FILES)
def test_a_mistake_is_named(name: str, tmp_path: Path) -> None:
    report = _built(finding_models.FILES[name](), tmp_path)
    assert {finding.cause for finding in report.findings} - USUAL == EXPECTED[name]
    for finding in report.findings:
        assert finding.kernels and finding.nodes
        assert finding.activation_bytes == sum(
            report.kernels[i].activation_bytes or 0 for i in finding.kernels
        )


@pytest.mark.parametrize("name", finding_models.ATTENTIONS)
def test_attention_that_is_not_fused_says_why(name: str, tmp_path: Path) -> None:
    report = _built(finding_models.attention(finding_models.ATTENTIONS[name]), tmp_path)
    found = [f for f in report.findings if f.cause.startswith("attention")]
    assert (ATTENTIONS[name] is None) == ("attention" in report.operations)
    if ATTENTIONS[name] is None:
        assert not found
        return
    (finding,) = found
    cause, detail = ATTENTIONS[name]
    assert finding.cause == cause and finding.detail.startswith(detail)
    assert [report.kernels[i].operation for i in finding.kernels] == ["gemm", None, "gemm"]


def test_every_cause_has_advice_that_reads_well() -> None:
    for cause, advice in ADVICE.items():
        assert cause.islower() and " " not in cause
        for text in (advice.title, advice.broke, advice.mend):
            assert text and text == text.strip() and not text.endswith("."), cause
            assert "[" not in text and "#" not in text, cause


def _tensor(name: str, dtype: str, *shape: int) -> TensorType:
    return TensorType(name, dtype, shape)


def _kernel(name: str, kind: str, ends: tuple[TensorType, TensorType], *nodes: str) -> Kernel:
    return Kernel(name, kind, ends[:1], ends[1:], (), nodes)


def _causes(plan: Description) -> list[str]:
    return [finding.cause for finding in plan.findings]


def _one_conv(**attributes: int) -> tuple[onnx.ModelProto, str]:
    g = finding_models.Graph()
    y = g.conv(g.pair(g.op("Sin", g.input("x", 1, 16, 8, 8))), 16, **attributes)
    return g.model(g.op("Sin", y)), y.removesuffix("_y")


IMAGE = (1, 16, 8, 8)


@pytest.mark.parametrize(("groups", "cause"), [(1, "missed"), (2, "missed"), (8, "grouped-conv")])
def test_a_conv_that_the_builder_left_in_float(groups: int, cause: str) -> None:
    model, node = _one_conv(group=groups)
    ends = (_tensor("a", "Half", *IMAGE), _tensor("b", "Half", *IMAGE))
    plan = describe([_kernel("k", "CaskConvolution", ends, node)], Outline(model))
    assert _causes(plan) == [cause]
    assert plan.findings[0].detail == "Int8 in the file, Half"
    quantized = (_tensor("a", "Int8", *IMAGE), _tensor("b", "Half", *IMAGE))
    plan = describe([_kernel("k", "CaskConvolution", quantized, node)], Outline(model))
    assert _causes(plan) == []


def test_a_conv_inside_a_generated_kernel() -> None:
    model, node = _one_conv()
    ends = (_tensor("a", "Float", *IMAGE), _tensor("b", "Float", *IMAGE))
    plan = describe([_kernel("__myl_Corr", "kgen", ends, node)], Outline(model))
    assert _causes(plan) == ["generated"]


@pytest.mark.parametrize(
    ("came", "went", "cause"),
    [("Half", "Int8", "type-change"), ("Half", "Half", "layout-change")],
)
def test_a_reformat_between_two_layers(came: str, went: str, cause: str) -> None:
    a, b = _tensor("a", "Half", *IMAGE), _tensor("b", came, *IMAGE)
    c, d = _tensor("c", went, *IMAGE), _tensor("d", "Half", *IMAGE)
    name = "Reformatting CopyNode for Input Tensor 0 to conv2"
    rows = [
        _kernel("conv1", "CaskConvolution", (a, b), "conv1"),
        _kernel(name, "Reformat", (b, c)),
        _kernel("conv2", "CaskConvolution", (c, d), "conv2"),
    ]
    plan = describe(rows)
    assert _causes(plan) == [cause]
    assert plan.kernels[1].inferred and plan.kernels[1].nodes == ("conv1",)


def test_without_the_file_a_pair_is_known_by_its_name() -> None:
    ends = (_tensor("a", "Float", *IMAGE), _tensor("b", "Int8", *IMAGE))
    (finding,) = describe(
        [_kernel("QuantizeLinear_2", "Reformat", ends, "QuantizeLinear_2")]
    ).findings
    assert finding.cause == "quantizes-input" and finding.nodes == ("QuantizeLinear_2",)
