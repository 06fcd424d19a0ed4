"""Large members are never loaded whole."""

from __future__ import annotations

import tracemalloc
import zipfile

import numpy as np
import pytest

from fusewright.calibrate.samples import open_samples
from fusewright.graph.session import TensorSpec

ROWS, WIDTH = 800, 65_536  # 200 MB of float32
SPEC = (TensorSpec("x", np.dtype(np.float32), ("N", WIDTH)),)


def _write(path, method: int) -> None:
    """Writes the member row by row, so that the test itself stays small."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (ROWS, WIDTH)}
    with (
        zipfile.ZipFile(path, "w", method, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for k in range(ROWS):
            file.write(np.full(WIDTH, k, np.float32).tobytes())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_200_mb_member_is_streamed(method, tmp_path):
    path = tmp_path / "large.npz"
    _write(path, method)
    tracemalloc.start()
    try:
        firsts = [float(feed["x"][0, 0]) for feed in open_samples(path, SPEC)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert firsts == list(range(ROWS))
    assert peak < 8 << 20


def test_taking_a_few_does_not_read_all(tmp_path):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (ROWS, WIDTH)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + ROWS * WIDTH * 4)  # a sparse file of zeros
    tracemalloc.start()
    try:
        assert len(open_samples(path, SPEC).take(4)) == 4
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
