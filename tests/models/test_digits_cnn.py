"""The trained CNN that ships with the repository: what it holds (test_digits.py: how it does)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from digits import HERE


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(HERE / "digits_cnn.onnx")


def test_structure(model: onnx.ModelProto) -> None:
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["Conv"] == counts["BatchNormalization"] == 8
    assert counts["Relu"] == 7
    assert counts["Add"] == 3
    assert counts["MaxPool"] == counts["GlobalAveragePool"] == counts["Gemm"] == 1


def test_batch_norm_is_a_node_in_inference_mode(model: onnx.ModelProto) -> None:
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    for node in norms:
        training = [a.i for a in node.attribute if a.name == "training_mode"]
        assert training in ([], [0]), node.name
        assert len(node.output) == 1, node.name
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    # A trained BN has statistics of its own: folding an identity would show nothing.
    variances = [stored[node.input[4]] for node in norms]
    assert all(np.abs(v - 1).max() > 0.01 for v in variances)
