"""Attention over an open number of keys: what was measured on few of them does not say of many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from building import Net

from fusewright import optimize
from fusewright.verify import compare_models

WIDTH, HEADS, SIZE = 64, 4, 16
X = "x"


def _rotary(length: int | str) -> onnx.ModelProto:
    """One attention with rotary positions that are fed."""
    net = Net(17)
    x, places = net.input(X, 1, length, WIDTH), net.input("places", 1, length, dtype=np.int64)
    inverse = (1 / 10000 ** (np.arange(0, SIZE, 2) / SIZE)).astype(np.float32)
    column = net.op("Unsqueeze", net.op("Cast", places, to=1), [2])
    half = net.op("Mul", column, inverse.reshape(1, 1, -1))
    angles = net.op("Unsqueeze", net.op("Concat", half, half, axis=-1), [1])
    cos, sin = net.op("Cos", angles), net.op("Sin", angles)

    def heads(factor: float) -> str:
        weight = net.random.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH) * factor
        y = net.op("MatMul", x, net.store(weight))
        return net.op("Transpose", net.op("Reshape", y, [0, 0, HEADS, SIZE]), perm=[0, 2, 1, 3])

    def rotated(t: str) -> str:
        first, second = net.op("Split", t, outputs=2, axis=3)
        turned = net.op("Concat", net.op("Neg", second), first, axis=-1)
        return net.op("Add", net.op("Mul", t, cos), net.op("Mul", turned, sin))

    q, k, v = heads(1.5), heads(1.5), heads(1.0)
    k = net.op("Transpose", rotated(k), perm=[0, 1, 3, 2])
    scores = net.op("Mul", net.op("MatMul", rotated(q), k), SIZE**-0.5)
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, WIDTH])
    return net.proto(net.op("MatMul", y, net.draw(WIDTH, WIDTH)))


def _samples(length: int, count: int, first: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    places = first + np.arange(length)[None]
    return [
        {X: rng.standard_normal((1, length, WIDTH)).astype(np.float32), "places": places}
        for _ in range(count)
    ]


def _shapes(most: int) -> dict[str, Any]:
    sizes = (1, 6, most)
    return {
        X: tuple((1, size, WIDTH) for size in sizes),
        "places": tuple((1, size) for size in sizes),
    }


@pytest.mark.parametrize(
    ("length", "settings", "said"),
    [
        ("s", {}, "no maximum is declared"),
        ("s", {"shapes": _shapes(512)}, "512 are declared"),
        ("s", {"shapes": _shapes(12)}, ""),
        (6, {}, ""),
        ("s", {"precision": "fp32"}, ""),
    ],
    ids=["open", "far more", "twice as many", "fixed", "nothing is rounded"],
)
def test_a_number_of_keys_that_no_sample_had_is_told(
    length: int | str, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    onnx.save(_rotary(length), tmp_path / "m.onnx")
    result = optimize(tmp_path / "m.onnx", None, calibration=_samples(6, 8), **settings)
    notes = [note for note in result.notes if "keys was measured" in note]
    assert len(notes) == bool(said)
    if said:
        assert notes[0].startswith("attention over 's' keys was measured with 6 at most")
        assert said in notes[0]


def test_far_positions_lose_what_near_ones_do(tmp_path: Path) -> None:
    """Rotation keeps the norm of each pair: ranges that were calibrated at 0 hold at 4000."""
    path, result = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnx.save(_rotary("s"), path)
    optimize(path, result, calibration=_samples(6, 8))
    near, far = (
        compare_models(path, result, _samples(40, 6, first, seed=1))[0].worst.sqnr_db
        for first in (0, 4000)
    )
    assert min(near, far) > 20
    assert abs(near - far) < 2
