"""Exact rewrites in front of a selection stay, though near ties come out otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import Net

from fusewright import optimize
from fusewright.pipeline import prepare

ROWS, WIDTH, KEPT = 64, 16, 20


def _detector() -> onnx.ModelProto:
    """An encoder with a chain to fold, 20 of 64 queries by scores in pairs, a decoder behind."""
    net = Net(17, seed=3)
    x = net.input("x", ROWS, WIDTH)
    weight = net.draw(WIDTH, WIDTH)
    memory = net.batchnorm(net.op("MatMul", x, weight), WIDTH)
    scores = net.op("Squeeze", net.op("MatMul", memory, net.draw(WIDTH, 1)), [1], name="scores")
    marked = net.op("Add", memory, net.draw(ROWS, WIDTH), name="marked")
    _, which = net.op("TopK", scores, [KEPT], outputs=2, axis=0, name="topk")
    queries = net.op("Gather", marked, which, axis=0)
    y = net.op("Relu", net.op("MatMul", queries, net.draw(WIDTH, 32)))
    return net.proto(net.op("Add", net.op("MatMul", y, net.draw(32, 4)), net.draw(4), name="out"))


def _data() -> dict[str, np.ndarray]:
    """Rows in pairs, equal but for the last bits: rounding orders their scores."""
    rows = np.random.default_rng(0).standard_normal((4, ROWS // 2, WIDTH))
    pairs = np.repeat(rows, 2, axis=1)
    noise = np.random.default_rng(1).uniform(-3e-7, 3e-7, pairs.shape)
    return {"x": (pairs * (1 + noise)).astype(np.float32).reshape(4 * ROWS, WIDTH)}


def test_a_fold_in_front_of_a_selection_is_kept(tmp_path: Path) -> None:
    """transformers' RT-DETR lost its ProjectionScale so, and 20 seconds."""
    onnx.save(_detector(), tmp_path / "m.onnx")
    result = optimize(tmp_path / "m.onnx", tmp_path / "o.onnx", _data())
    assert not result.trace.undone()
    assert "BatchNormalization" not in [n.op_type for n in result.model.graph.node]
    proofs = [event.detail for event in result.trace if event.what == "proof"]
    assert any("holds" in text and "on what the original selects" in text for text in proofs)
    notes = [event.detail for event in result.trace if event.name == "proof"]
    assert not notes, "nothing was done twice"
    (selected,) = result.accuracy.selections
    assert selected.label == "TopK 'topk'"
    assert result.accuracy.worst.sqnr_db > 20
    assert result.to_dict()["selections"] == [selected.to_dict()]


@pytest.mark.parametrize("place", ["in front", "behind"])
def test_a_wrong_one_is_undone(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(_detector(), tmp_path / "m.onnx")
    clean = prepare.clean

    def wrong(source: object, workspace: object) -> onnx.ModelProto:
        proto = clean(source)
        width = 32 if place == "behind" else 1
        for tensor in proto.graph.initializer:
            if list(tensor.dims) in ([WIDTH, width],):
                array = onnx.numpy_helper.to_array(tensor) * np.float32(1.001)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return proto

    monkeypatch.setattr(prepare, "clean", wrong)
    result = optimize(tmp_path / "m.onnx", tmp_path / "o.onnx", _data())
    assert [event.stage for event in result.trace.undone()] == ["clean"]
