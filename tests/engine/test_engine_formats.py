"""FP8, mixed and BF16 files as TensorRT-RTX plans them for SM 89: no matrix or attention float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import fusewright
from fusewright.engine.build import BuildOptions, build

pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
MODELS = Path(__file__).resolve().parents[2] / "models"
ADA = BuildOptions(backend="tensorrt_rtx", sm=89)

# Model, settings → data types of the fused attentions' inputs, of the matrices'.
FILES = {
    "ViT": ("digits_vit", {}, {"FP8": 4}, {"FP8": 17}),
    # Its windows of 16 tokens are too short.
    "Swin": ("digits_swin", {}, {"Half": 4}, {"FP8": 18}),
    "ViT, FP8 attention between INT8": (
        "digits_vit",
        {"precision": "int8+fp16", "group_precision": ("op:*Attention=fp8",)},
        {"FP8": 4},
        {"Int8": 17},
    ),
    "ViT, FP8 with BF16": ("digits_vit", {"precision": "fp8+bf16"}, {"FP8": 4}, {"FP8": 17}),
    # Were its INT8 attentions' insides BF16 too, none would be fused.
    "ViT, INT8 with BF16": ("digits_vit", {"precision": "int8+bf16"}, {"Int8": 4}, {"Int8": 17}),
    "Swin, INT8 with BF16": ("digits_swin", {"precision": "int8+bf16"}, {"Int8": 4}, {"Int8": 18}),
}


@pytest.mark.parametrize("case", FILES)
def test_matrices_and_attentions(case: str, tmp_path: Path) -> None:
    model, settings, attentions, matrices = FILES[case]
    out = tmp_path / "out.onnx"
    fusewright.optimize(
        MODELS / f"{model}.onnx",
        out,
        MODELS / "digits_32_calib.npz",
        **{"precision": "fp8+fp16", "target": "rtx:rtx4090", "samples": 4, **settings},
    )
    shapes = {"input": ((1, 1, 32, 32),) * 3}
    options = BuildOptions(backend=ADA.backend, sm=ADA.sm, shapes=shapes)
    found = [entry.kernel for entry in build(out, None, options).kernels]
    fused = Counter(k.inputs[0].dtype for k in found if "_mha_" in k.name)
    assert fused == attentions
    assert Counter(k.inputs[0].dtype for k in found if k.type == "gemm") == matrices
