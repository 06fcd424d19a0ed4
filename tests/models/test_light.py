"""The onnx package's light models with random weights: they run, and their weights matter."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from light import LIGHT, image, light
from onnx import numpy_helper

LARGE = {"light_bvlc_alexnet", "light_vgg19", "light_zfnet512"}


def _run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(None, feed)
    return output.ravel()


@pytest.mark.parametrize("name", LIGHT)
def test_runs_with_meaningful_outputs(name: str) -> None:
    if name in LARGE and not os.environ.get("FUSEWRIGHT_LARGE"):
        pytest.skip("hundreds of megabytes; set FUSEWRIGHT_LARGE=1 to run")
    model = light(name)
    onnx.checker.check_model(model)
    one, other = (_run(model, image(model, seed)) for seed in (1, 2))
    assert np.isfinite(one).all()
    # Another image gives another answer, and no Softmax is saturated: equality proves something.
    assert np.linalg.norm(one - other) > 0.01 * np.linalg.norm(one)
    assert np.sort(np.abs(one))[-2] > 1e-4 * np.abs(one).max()


def test_every_weight_is_drawn() -> None:
    model = light("light_resnet50")
    assert not [node for node in model.graph.node if node.op_type == "ConstantOfShape"]
    read = {name for node in model.graph.node for name in node.input}
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name in read
    }
    assert len(weights) == 53 + 4 * 53 + 2  # convs, four of each BatchNorm, classifier
    assert all(values.std() > 0 for values in weights.values())


def test_seed_decides() -> None:
    first, again, other = (light("light_squeezenet", seed) for seed in (0, 0, 1))
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )
    assert first != other


def test_what_is_odd_in_the_files_stays() -> None:
    model = light("light_squeezenet")
    stored = {tensor.name for tensor in model.graph.initializer}
    assert stored < {value.name for value in model.graph.input}
    assert model.ir_version == 3
    assert model.opset_import[0].version == 9


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="no light model 'nope'"):
        light("nope")
