"""Samples that are far larger than the others are named, with where they came from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fusewright.calibrate import open_samples
from fusewright.calibrate.loudness import SampleMaxima, loud_notes, loud_samples
from fusewright.graph.session import TensorSpec


@pytest.mark.parametrize(
    ("maxima", "loud"),
    [
        ([1.0] * 15 + [255.0], {15: 255.0}),
        ([1.0, 255.0], {1: 255.0}),
        ([1.0] * 4 + [255.0] * 4, {4: 255.0, 5: 255.0, 6: 255.0, 7: 255.0}),
        ([2.6, 0.5, 1.0, 10.0], {}),
        ([0.0, 0.0, 0.0, 1e9], {}),
        ([255.0], {}),
        ([], {}),
    ],
    ids=["one", "of two", "half", "dark and bright", "mask", "alone", "none"],
)
def test_what_stands_out(maxima: list[float], loud: dict[int, float]) -> None:
    assert loud_samples(maxima) == loud


def test_the_largest_finite_magnitude_counts() -> None:
    seen = SampleMaxima()
    for values in ([1, -3], [np.inf, 2], [np.nan, -1], [-np.inf], []):
        seen.update(np.array(values, np.float32))
    assert seen.maxima == [3, 2, 1, 0, 0]


def _images(count: int = 8) -> np.ndarray:
    images = np.random.default_rng(0).random((count, 3, 4, 4)).astype(np.float32)
    images[5] *= 255
    return images


def _notes(source: object, batch: int = 1, take: int = 0) -> list[str]:
    spec = TensorSpec("x", np.dtype(np.float32), (batch, 3, 4, 4))
    samples, seen = open_samples(source, [spec]), SampleMaxima()
    samples.take(take)
    for feed in samples:
        seen.update(feed["x"], "x")
    return loud_notes({"x": seen}, samples)


def _one_by_one() -> Iterator[dict[str, np.ndarray]]:
    yield from ({"x": image[None]} for image in _images())


def test_where_it_came_from(tmp_path: Path) -> None:
    for i, image in enumerate(_images()):
        (tmp_path / "files").mkdir(exist_ok=True)
        np.save(tmp_path / "files" / f"image_{i}.npy", image[None])
    np.savez(tmp_path / "all.npz", x=_images())
    (note,) = _notes(tmp_path / "files")
    assert note.startswith("calibration sample 5 (") and "image_5.npy)" in note
    assert "input 'x' reaches 25" in note and "times the median sample" in note
    (note,) = _notes(tmp_path / "all.npz")
    assert "sample 5 (" in note and "all.npz)" in note
    (note,) = _notes({"x": _images()}, batch=4)
    assert "sample 4 to 7 (calibration data)" in note
    (note,) = _notes(_one_by_one(), take=4)
    assert "item 5)" in note, "what was taken before keeps its place"
    assert not _notes({"x": _images()[:5]})


def test_many_are_counted() -> None:
    images = np.ones((9, 3, 4, 4), np.float32)
    images[5:] *= 100
    (note,) = _notes({"x": images})
    assert "sample 5 (calibration data), 6 (calibration data), 7 (calibration data) and 1" in note
