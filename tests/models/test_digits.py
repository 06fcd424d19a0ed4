"""The trained models that ship with the repository: accuracy, interface, and their data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from digits import HERE, LEVELS, Example, load_split, score
from digits_cnn import EXAMPLE as CNN
from digits_swin import EXAMPLE as SWIN
from digits_vit import EXAMPLE as VIT

EXAMPLES = (CNN, VIT, SWIN)
# Correct answers of 500 where they were trained, less one that another CPU's rounding may flip.
CORRECT = {"digits_cnn": 497, "digits_vit": 493, "digits_swin": 493}

each = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)


def data(example: Example, part: str) -> dict[str, np.ndarray]:
    with np.load(HERE / f"{example.data}_{part}.npz") as arrays:
        return dict(arrays)


def run(example: Example, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        HERE / f"{example.name}.onnx", providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"input": images})[0]


@each
def test_top1_on_held_out_digits(example: Example) -> None:
    test = data(example, "test")
    logits = run(example, test["input"])
    correct = int((logits.argmax(-1) == test["label"]).sum())
    assert len(logits) == 500
    assert correct >= CORRECT[example.name]
    assert score(example) == pytest.approx(100 * correct / 500)


@each
def test_interface_has_a_dynamic_batch(example: Example) -> None:
    model = onnx.load(HERE / f"{example.name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    (source,), (logits,) = model.graph.input, model.graph.output
    assert (source.name, logits.name) == ("input", "logits")
    shapes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (source, logits)
    ]
    assert shapes == [["batch", 1, example.size, example.size], ["batch", 10]]


@each
def test_a_sample_does_not_see_its_batch(example: Example) -> None:
    images = data(example, "test")["input"][:5]
    together, alone = run(example, images), run(example, images[3:4])
    np.testing.assert_allclose(alone[0], together[3], rtol=1e-4, atol=1e-4)
    assert np.abs(together[3] - together[4]).max() > 0.1


@each
def test_calibration_file_holds_the_input_alone(example: Example) -> None:
    calibration = data(example, "calib")
    assert [*calibration] == ["input"]
    samples = calibration["input"]
    assert samples.shape == (256, 1, example.size, example.size)
    assert samples.dtype == np.float32
    held_out = {image.tobytes() for image in data(example, "test")["input"]}
    assert not held_out & {image.tobytes() for image in samples}


@each
def test_data_is_what_the_script_makes(example: Example) -> None:
    pytest.importorskip("sklearn", reason="the data is made with scikit-learn, not installed here")
    split = load_split(example.size)
    test = data(example, "test")
    np.testing.assert_array_equal(test["input"], split["x_test"])
    np.testing.assert_array_equal(test["label"], split["y_test"])
    np.testing.assert_array_equal(data(example, "calib")["input"], split["x_train"][:256])
    assert set(np.unique(LEVELS * test["input"])) == set(range(LEVELS + 1))


@pytest.mark.parametrize("path", sorted(HERE.glob("digits*.[on]*")), ids=lambda path: path.name)
def test_files_stay_under_a_megabyte(path: Path) -> None:
    assert path.stat().st_size < 1_000_000


def test_no_file_is_left_over() -> None:
    expected = {f"{example.name}.onnx" for example in EXAMPLES}
    expected |= {f"{e.data}_{part}.npz" for e in EXAMPLES for part in ("calib", "test")}
    assert {path.name for path in HERE.glob("digits*.[on]*")} == expected
