"""FP8 and mixed files as TensorRT-RTX plans them for SM 89: every matrix and attention in FP8."""

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
