"""A row of a batch is a sample; a row of anything else is not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from building import Net

from fusewright.verify import Comparison, OutputError, Reference, compare_models

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)


def _classifier(noise: float = 0.0) -> onnx.ModelProto:
    """A layer of four classes, with an error of one size in each row."""
    net = Net(17)
    y = net.op("MatMul", net.input("x", 4, 8), WEIGHT)
    return net.proto(net.op("Add", y, np.float32(noise)))


def _only(comparison: Comparison) -> OutputError:
    (output,) = comparison.outputs
    return output


def _errors(x: np.ndarray, noise: float) -> np.ndarray:
    return noise * 2 / np.linalg.norm(x @ WEIGHT, axis=1)


def test_a_loud_row_does_not_hide_the_others() -> None:
    x = X * np.float32([[1], [1000], [1], [1]])
    found = _only(Reference(_classifier(), [{"x": x}]).compare(_classifier(1.0), is_final=True))
    wanted = _errors(x, 1.0)
    assert found.rows == (pytest.approx(tuple(wanted), rel=1e-4),)
    assert found.relative == pytest.approx(2 * 2 / np.linalg.norm(x @ WEIGHT), rel=1e-4)
    assert found.median == pytest.approx(np.sort(wanted)[2], rel=1e-4)
    assert found.median > 50 * found.relative
    worst = found.worst_sample
    assert (worst.sample, worst.row) == (0, int(np.argmax(wanted)))
    assert str(worst) == f"sample 0, row {worst.row}"
    report = found.to_dict()["worst_sample"]
    assert report == {
        "sample": 0,
        "row": worst.row,
        "relative_error": worst.error,
        "sqnr_db": pytest.approx(-20 * np.log10(worst.error)),
    }


def test_the_samples_of_a_batch_are_its_rows_in_a_stream_too() -> None:
    feeds = [{"x": X}, {"x": -2 * X}]
    found = _only(compare_models(_classifier(), _classifier(1.0), feeds)[0])
    assert [len(rows) for rows in found.rows] == [4, 4]
    assert found.worst_sample.sample == 0
    assert found.samples == pytest.approx((found.relative * 1.58, found.relative * 0.79), rel=0.01)


@pytest.mark.parametrize("kind", ["against each other", "sequence", "not of the inputs", "sum"])
def test_an_output_of_the_same_size_is_not_a_batch_by_that(kind: str) -> None:
    """The size of axis 0 alone says nothing: its rows are no samples, and stay with the feed."""

    def model(noise: float) -> onnx.ModelProto:
        net = Net(17)
        x = net.input("x", 4, 8)
        if kind == "against each other":
            y = net.op("MatMul", x, net.op("Transpose", x, perm=[1, 0]))
        elif kind == "sequence":
            positions = np.arange(4, dtype=np.float32)[:, None]
            y = net.op("Add", net.op("MatMul", x, WEIGHT), positions)
        elif kind == "not of the inputs":
            y = net.op("Add", np.arange(16, dtype=np.float32).reshape(4, 4), np.float32(1))
        else:
            y = net.op("Sub", x, net.op("ReduceMean", x, axes=[0]))
        return net.proto(net.op("Add", y, np.float32(noise)))

    found = _only(Reference(model(0), [{"x": X}]).compare(model(0.1), is_final=True))
    assert found.rows == ()
    assert found.median == found.samples[0] == pytest.approx(found.relative)


def test_inputs_that_all_rows_share() -> None:
    def model(noise: float) -> onnx.ModelProto:
        net = Net(17)
        step = net.input("step", 1, 4)
        y = net.op("Add", net.op("MatMul", net.input("x", 4, 8), WEIGHT), step)
        return net.proto(net.op("Add", y, np.float32(noise)), net.op("Exp", step))

    feed = {"step": np.ones((1, 4), np.float32), "x": X}
    of_x, of_step = compare_models(model(0), model(0.1), [feed])[0].outputs
    assert len(of_x.rows[0]) == 4
    assert of_step.rows == ()


def test_inputs_of_several_sizes_are_no_batch() -> None:
    net = Net(17)
    x = net.op("MatMul", net.input("x", 4, 8), WEIGHT)
    proto = net.proto(x, net.op("Exp", net.input("z", 3, 2)))
    feed = {"x": X, "z": np.ones((3, 2), np.float32)}
    assert all(not o.rows for o in compare_models(proto, proto, [feed])[0].outputs)


def test_classes_of_a_batch() -> None:
    def model(turned: bool) -> onnx.ModelProto:
        net = Net(17)
        y = net.op("MatMul", net.input("x", 4, 8), -WEIGHT if turned else WEIGHT)
        return net.proto(net.op("Cast", net.op("Greater", y, np.float32(0)), to=7))

    found = _only(compare_models(model(False), model(True), [{"x": X}])[0])
    assert found.rows == ((1.0, 1.0, 1.0, 1.0),)
    assert str(found) == f"{found.name}: 100.00% of elements differ"
