"""The trained ViT and Swin that ship with the repository: what they hold, and that it is trained.

How well they do is in test_digits.py.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from digits import HERE
from onnx import numpy_helper

NAMES = ("digits_vit", "digits_swin")
# Operators of the raw export. Of the heavy ones ViT's 5 Gemms are 4 attention outputs and the head;
# of a shifted window's mask torchvision fills 9 regions, each a ScatterND: one block is shifted.
RAW = {
    "digits_vit": {"Conv": 1, "LayerNormalization": 9, "MatMul": 20, "Gemm": 5},
    "digits_swin": {"Conv": 1, "LayerNormalization": 11, "MatMul": 25, "Gemm": 1, "ScatterND": 9},
}


@pytest.fixture(scope="module")
def models() -> dict[str, onnx.ModelProto]:
    return {name: onnx.load(HERE / f"{name}.onnx") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_structure(name: str, models: dict[str, onnx.ModelProto]) -> None:
    counts = Counter(node.op_type for node in models[name].graph.node)
    assert {op: counts[op] for op in RAW[name]} == RAW[name]
    assert counts["Softmax"] == counts["Erf"] == 4
    # As users bring it: shapes are still computed in the graph.
    assert counts["Shape"] > 30


@pytest.mark.parametrize("name", NAMES)
def test_layer_norms_are_trained(name: str, models: dict[str, onnx.ModelProto]) -> None:
    graph = models[name].graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    # Folding or migrating into a norm of ones and zeros would show nothing.
    for node in norms:
        scale, bias = (stored[tensor] for tensor in node.input[1:3])
        assert np.abs(scale - 1).max() > 0.01, node.name
        assert np.abs(bias).max() > 0.01, node.name


@pytest.mark.parametrize(("name", "tokens"), [("digits_vit", 65), ("digits_swin", 16)])
def test_attention_is_far_from_uniform(
    name: str, tokens: int, models: dict[str, onnx.ModelProto]
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(models[name])
    softmaxes = [node.output[0] for node in model.graph.node if node.op_type == "Softmax"]
    model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in softmaxes)
    with np.load(HERE / "digits_32_test.npz") as test:
        images = test["input"][:32]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for tensor, weights in zip(softmaxes, session.run(softmaxes, {"input": images}), strict=True):
        assert weights.shape[-2:] == (tokens, tokens), tensor
        assert weights.max(-1).mean() > 2 / tokens, tensor
