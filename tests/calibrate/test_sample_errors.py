"""Bad data is an error that names it: the file, the member, the input, the sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from stored_samples import (
    DATA,
    FIXED,
    IMAGE,
    PAIR,
    deflated_file,
    npy_file,
    npz_file,
)

from fusewright.calibrate.samples import open_samples
from fusewright.errors import DataError
from fusewright.graph.session import TensorSpec


def _bad(**arrays: object):
    return lambda folder: arrays


def _object_npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=np.array([{}, 1], dtype=object))
    return folder / "a.npz"


def _truncated_npz(folder: Path) -> Path:
    path = npz_file(folder)
    path.write_bytes(path.read_bytes()[:-700])
    return path


def _damaged_npz(folder: Path) -> Path:
    path = deflated_file(folder)
    data = bytearray(path.read_bytes())
    data[900:1000] = bytes(100)
    path.write_bytes(data)
    return path


def _truncated_npy(folder: Path) -> Path:
    path = npy_file(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def _not_npz(folder: Path) -> Path:
    (folder / "a.npz").write_text("hello")
    return folder / "a.npz"


def _not_npy(folder: Path) -> Path:
    (folder / "a.npy").write_text("hello")
    return folder / "a.npy"


def _missing(folder: Path) -> Path:
    return folder / "nothing.npz"


def _empty_folder(folder: Path) -> Path:
    (folder / "README.txt").write_text("hello")
    return folder


def _mixed_folder(folder: Path) -> Path:
    npz_file(folder)
    (folder / "a.png").write_bytes(b"")
    return folder


def _unknown_file(folder: Path) -> Path:
    (folder / "a.csv").write_text("1,2")
    return folder / "a.csv"


def _other_name(folder: Path) -> Path:
    np.savez(folder / "a.npz", images=DATA)
    return folder / "a.npz"


def _bad_tensor(folder: Path) -> Path:
    (folder / "input_0.pb").write_bytes(b"\xff\xff\xff")
    return folder


def _two_tensors(folder: Path) -> Path:
    for k in range(2):
        (folder / f"input_{k}.pb").write_bytes(onnx.TensorProto().SerializeToString())
    return folder


def _nan(folder: Path) -> Path:
    data = DATA.copy()
    data[7, 0, 0, 0] = np.nan
    np.savez(folder / "a.npz", x=data)
    return folder / "a.npz"


ERRORS = {
    "no such path": (_missing, r"nothing\.npz: no such file"),
    "empty folder": (_empty_folder, "no .npz, .npy, images"),
    "two kinds": (_mixed_folder, "holds arrays and images"),
    "unknown file": (_unknown_file, r"a\.csv: not calibration data"),
    "no items": (lambda _: [], "no calibration samples"),
    "no rows": (_bad(x=DATA[:0]), "'x': holds no samples"),
    "wrong name": (_other_name, r"a\.npz: array 'images' is no input of the model \('x'\)"),
    "missing input": (_bad(), "no array for input 'x'"),
    "rank": (_bad(x=DATA[0, 0]), r"rank 2, input 'x' has rank 4 \[N, 3, 4, 4\]"),
    "no batch axis": (_bad(x=DATA[0]), "a batch axis is missing"),
    "dimension": (_bad(x=DATA[:, :2]), "axis 1 is 2, not 3"),
    "stacked dimension": (_bad(x=DATA[:, None, :, :3]), "axis 2 is 3, not 4"),
    "int for float": (_bad(x=DATA.astype(np.uint8)), "dtype uint8 does not convert exactly"),
    "bool for float": (_bad(x=DATA > 0), "dtype bool does not convert exactly"),
    "text": (_bad(x=np.full(DATA.shape, "a")), "does not convert exactly"),
    "ragged": (_bad(x=[[1.0], [1.0, 2.0]]), "'x': not an array"),
    "objects in memory": (_bad(x=[{}, {}]), "only plain arrays"),
    "objects in npz": (_object_npz, r"a\.npz, member 'x\.npy': holds object \(pickled\)"),
    "truncated npz": (_truncated_npz, r"a\.npz: not an \.npz file, or truncated"),
    "damaged npz": (_damaged_npz, r"a\.npz, member 'x\.npy': .*Bad CRC"),
    "truncated npy": (_truncated_npy, r"a\.npy: truncated, 100 bytes are missing"),
    "not npz": (_not_npz, r"a\.npz: not an \.npz file"),
    "not npy": (_not_npy, r"a\.npy: not a readable \.npy"),
    "NaN": (_nan, r"a\.npz, member 'x\.npy': sample 7 holds NaN"),
    "Inf": (_bad(x=np.full((2, 3, 4, 4), np.inf)), "sample 0 holds Inf"),
    "overflow": (_bad(x=np.full((2, 3, 4, 4), 1e300)), "sample 0 overflows float32"),
    "bad TensorProto": (_bad_tensor, r"input_0\.pb \(input 'x'\): not a readable TensorProto"),
    "two TensorProtos": (_two_tensors, "2 input_.*pb, the model has 1 inputs"),
    "a number": (lambda _: 5, "reader int: no calibration data"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_culprit(name, tmp_path):
    make, message = ERRORS[name]
    with pytest.raises(DataError, match=message) as caught:
        list(open_samples(make(tmp_path), IMAGE))
    assert "\n" not in str(caught.value)


def test_float_for_int_and_narrowing_ints_are_errors():
    inputs = (TensorSpec("ids", np.dtype(np.int32), ("N", 2)),)
    for bad in (np.zeros((1, 2), np.float32), np.zeros((1, 2), np.int64)):
        with pytest.raises(DataError, match="does not convert exactly to int32"):
            list(open_samples({"ids": bad}, inputs))


def test_different_counts_are_an_error():
    data = {"x": np.zeros((3, 2), np.float32), "ids": np.zeros((2, 4), np.int64)}
    with pytest.raises(DataError, match="different numbers of samples: 'x' 3, 'ids' 2"):
        list(open_samples(data, PAIR))


def test_fewer_samples_than_the_batch():
    with pytest.raises(DataError, match="3 samples for input 'x', the model takes 4"):
        list(open_samples({"x": DATA[:3]}, FIXED))


def test_npy_needs_a_single_input(tmp_path):
    with pytest.raises(DataError, match="the model has 2 inputs"):
        open_samples(npy_file(tmp_path), PAIR)
