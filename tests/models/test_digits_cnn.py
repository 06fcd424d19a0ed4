"""The trained model that ships with the repository: what it holds and how well it does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

MODELS = Path(__file__).resolve().parents[2] / "models"
FILES = ("digits_cnn.onnx", "digits_cnn_calib.npz", "digits_cnn_test.npz")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(MODELS / "digits_cnn.onnx")


def test_top1_on_held_out_digits() -> None:
    session = onnxruntime.InferenceSession(
        MODELS / "digits_cnn.onnx", providers=["CPUExecutionProvider"]
    )
    with np.load(MODELS / "digits_cnn_test.npz") as test:
        (logits,) = session.run(None, {"input": test["input"]})
        correct = int((logits.argmax(-1) == test["label"]).sum())
    assert len(logits) == 500
    assert correct >= 497  # 498 where it was trained; one may flip with another CPU's rounding


def test_structure(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
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


def test_interface_has_a_dynamic_batch(model: onnx.ModelProto) -> None:
    (source,), (logits,) = model.graph.input, model.graph.output
    assert (source.name, logits.name) == ("input", "logits")
    dims = [d.dim_param or d.dim_value for d in source.type.tensor_type.shape.dim]
    assert dims == ["batch", 1, 8, 8]


def test_calibration_file_holds_the_input_alone() -> None:
    with np.load(MODELS / "digits_cnn_calib.npz") as calibration:
        assert calibration.files == ["input"]
        samples = calibration["input"]
    assert samples.shape == (256, 1, 8, 8)
    assert samples.dtype == np.float32
    with np.load(MODELS / "digits_cnn_test.npz") as test:
        held_out = {image.tobytes() for image in test["input"]}
    assert not held_out & {image.tobytes() for image in samples}


@pytest.mark.parametrize("name", FILES)
def test_files_stay_under_a_megabyte(name: str) -> None:
    assert (MODELS / name).stat().st_size < 1_000_000
