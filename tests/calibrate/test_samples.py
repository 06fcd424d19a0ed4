"""Calibration data of every kind: the same feeds however they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from stored_samples import (
    AUDIO,
    DATA,
    F4,
    FIXED,
    I8,
    IMAGE,
    PAIR,
    STATE,
    Reader,
    collected,
    deflated_file,
    npy_file,
    npz_file,
)

from fusewright.calibrate.samples import open_samples
from fusewright.errors import DataError
from fusewright.graph.session import TensorSpec


def test_an_array_is_the_data_of_a_model_of_one_input() -> None:
    assert np.array_equal(collected(open_samples(DATA, IMAGE)), DATA)
    with pytest.raises(DataError, match="an array: the model has 2 inputs"):
        open_samples(DATA, PAIR)


def _fortran(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=np.asfortranarray(DATA))
    return folder / "a.npz"


def _big_endian(folder: Path) -> Path:
    np.save(folder / "a.npy", DATA.astype(">f4"))
    return folder / "a.npy"


def _float64(folder: Path) -> Path:
    np.save(folder / "a.npy", DATA.astype(np.float64))
    return folder / "a.npy"


def _folder_of_npz(folder: Path) -> Path:
    for k, part in enumerate(np.split(DATA, [3, 4, 9])):
        np.savez(folder / f"part{k}.npz", x=part)
    return folder


def _folder_of_npy(folder: Path) -> Path:
    for k in range(10):
        np.save(folder / f"{k}.npy", DATA[k : k + 1])
    return folder


def _stack(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=DATA[:, None])
    return folder / "a.npz"


def _stack_of_batches(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=DATA.reshape(5, 2, 3, 4, 4))
    return folder / "a.npz"


def _test_data_sets(folder: Path) -> Path:
    for k, part in enumerate(np.split(DATA, [1, 3, 7])):
        inner = folder / f"test_data_set_{k}"
        inner.mkdir()
        tensor = numpy_helper.from_array(part, "anything")
        (inner / "input_0.pb").write_bytes(tensor.SerializeToString())
        (inner / "output_0.pb").write_bytes(tensor.SerializeToString())
    return folder


def _one_test_data_set(folder: Path) -> Path:
    (folder / "input_0.pb").write_bytes(numpy_helper.from_array(DATA).SerializeToString())
    return folder


def _dict(_: Path) -> object:
    return {"x": DATA}


def _list(_: Path) -> object:
    return [{"x": DATA[:6]}, {"x": DATA[6:]}]


def _generator(_: Path) -> object:
    return ({"x": DATA[k : k + 2]} for k in range(0, 10, 2))


def _reader(_: Path) -> object:
    return Reader()


def _reader_class(_: Path) -> object:
    return Reader


SOURCES = [
    npz_file,
    deflated_file,
    npy_file,
    _fortran,
    _big_endian,
    _float64,
    _folder_of_npz,
    _folder_of_npy,
    _stack,
    _stack_of_batches,
    _test_data_sets,
    _one_test_data_set,
    _dict,
    _list,
    _generator,
    _reader,
    _reader_class,
]


@pytest.mark.parametrize("make", SOURCES)
def test_one_sample_at_a_time_where_the_batch_is_free(make, tmp_path):
    samples = open_samples(make(tmp_path), IMAGE)
    first = samples.take(4)
    assert [feed["x"].shape for feed in first] == [(1, 3, 4, 4)] * 4
    feeds = list(samples)
    assert {feed["x"].dtype for feed in feeds} == {F4}
    assert all(feed["x"].dtype.isnative and feed["x"].flags.c_contiguous for feed in feeds)
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), DATA)
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in first]), DATA[:4])


@pytest.mark.parametrize("make", [m for m in SOURCES if m not in (_stack, _stack_of_batches)])
def test_a_fixed_batch_is_filled_across_files(make, tmp_path):
    samples = open_samples(make(tmp_path), FIXED)
    assert samples.batch == 4
    np.testing.assert_array_equal(samples.take(4)[0]["x"], DATA[:4])
    feeds = list(samples)
    assert [feed["x"].shape[0] for feed in feeds] == [4, 4]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), DATA[:8])
    assert samples.notes == ["2 of 10 samples left out: input 'x' takes 4 at a time"]


def test_a_complete_input_and_a_stack_of_them():
    state = np.arange(10, dtype=np.float32).reshape(2, 1, 5)
    x = np.ones((3, 3), np.float32)
    feeds = list(open_samples({"x": x, "h": state}, STATE))
    assert [feed["x"].shape for feed in feeds] == [(1, 3)] * 3
    assert all((feed["h"] == state).all() for feed in feeds)
    stacked = np.stack([state, state + 1, state + 2])
    feeds = list(open_samples({"x": x, "h": stacked}, STATE))
    assert [float(feed["h"][0, 0, 0]) for feed in feeds] == [0.0, 1.0, 2.0]


def test_scalars_repeat_and_signals_stay_whole():
    signal = DATA.reshape(10, 48)
    feeds = list(open_samples({"x": signal, "sr": np.int64(16000)}, AUDIO))
    assert len(feeds) == 10
    assert all(feed["sr"].shape == () and feed["sr"] == 16000 for feed in feeds)
    rates = np.arange(10, dtype=np.int32)
    feeds = list(open_samples({"x": signal, "sr": rates}, AUDIO))
    assert [int(feed["sr"]) for feed in feeds] == list(range(10))
    wave = (TensorSpec("x", F4, ("num_frames",)),)
    assert [f["x"].shape for f in open_samples({"x": signal[0]}, wave)] == [(48,)]
    assert [f["x"].shape for f in open_samples({"x": signal}, wave)] == [(48,)] * 10


def test_single_rows_of_a_file_each_with_a_repeated_scalar():
    inputs = (TensorSpec("x", F4, (2, 3)), TensorSpec("sr", I8, ()))
    items = [{"x": np.full((1, 3), k, np.float32), "sr": np.int64(8)} for k in range(4)]
    feeds = list(open_samples(items, inputs))
    assert [feed["x"][:, 0].tolist() for feed in feeds] == [[0, 1], [2, 3]]
    assert [int(feed["sr"]) for feed in feeds] == [8, 8]


def test_sizes_may_vary_where_they_are_dynamic():
    items = [{"x": np.zeros((2, 2), np.float32), "ids": np.zeros((2, n), np.int32)} for n in (3, 5)]
    feeds = list(open_samples(items, PAIR))
    assert [feed["ids"].shape for feed in feeds] == [(1, 3), (1, 3), (1, 5), (1, 5)]
    assert {feed["ids"].dtype for feed in feeds} == {I8}


def test_a_later_file_that_does_not_fit_is_found_at_once(tmp_path):
    assert open_samples(_folder_of_npz(tmp_path), IMAGE).total == 10
    np.savez(tmp_path / "part9.npz", x=DATA[:, :2])
    with pytest.raises(DataError, match=r"part9\.npz.*axis 1 is 2, not 3"):
        open_samples(tmp_path, IMAGE)


def test_limit_and_total(tmp_path):
    samples = open_samples(npz_file(tmp_path), IMAGE)
    assert samples.total == 10
    assert open_samples(_stack(tmp_path), IMAGE).total == 10
    assert len(list(samples.limit(3))) == 3
    assert len(list(samples.limit(None))) == 10
    assert len(list(open_samples(npz_file(tmp_path), FIXED).limit(9))) == 2
