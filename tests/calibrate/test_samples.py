"""Calibration data of every kind: the same feeds however they are stored; bad data by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fusewright.calibrate.random_data import RandomSamples
from fusewright.calibrate.samples import Samples, open_samples
from fusewright.errors import DataError, FusewrightError, UsageError
from fusewright.graph.session import TensorSpec

F4, I8 = np.dtype(np.float32), np.dtype(np.int64)
IMAGE = (TensorSpec("x", F4, ("N", 3, 4, 4)),)
FIXED = (TensorSpec("x", F4, (4, 3, 4, 4)),)
PAIR = (TensorSpec("x", F4, ("N", 2)), TensorSpec("ids", I8, ("N", "L")))
AUDIO = (TensorSpec("x", F4, ("N", "L")), TensorSpec("sr", I8, ()))
STATE = (TensorSpec("x", F4, (1, 3)), TensorSpec("h", F4, (2, 1, 5)))
DATA = np.random.default_rng(0).standard_normal((10, 3, 4, 4)).astype(np.float32)


def collected(samples: Samples, name: str = "x") -> np.ndarray:
    return np.concatenate([feed[name] for feed in samples])


def test_an_array_is_the_data_of_a_model_of_one_input() -> None:
    assert np.array_equal(collected(open_samples(DATA, IMAGE)), DATA)
    with pytest.raises(DataError, match="an array: the model has 2 inputs"):
        open_samples(DATA, PAIR)


def _npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=DATA)
    return folder / "a.npz"


def _deflated(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", x=DATA)
    return folder / "a.npz"


def _npy(folder: Path) -> Path:
    np.save(folder / "a.npy", DATA)
    return folder / "a.npy"


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


class Reader:
    def __init__(self) -> None:
        self.parts = iter(np.split(DATA, 5))

    def get_next(self):
        part = next(self.parts, None)
        return None if part is None else {"x": part}


def _reader(_: Path) -> object:
    return Reader()


def _reader_class(_: Path) -> object:
    return Reader


SOURCES = [
    _npz,
    _deflated,
    _npy,
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


def test_a_source_that_reads_once_is_kept_only_as_far_as_taken():
    alive = []

    def stream():
        for k in range(10):
            alive.append(k)
            yield {"x": DATA[k]}

    inputs = (TensorSpec("x", F4, (3, 4, 4)),)
    samples = open_samples(stream(), inputs)
    assert len(samples.take(1)) == 1 and len(alive) <= 2
    assert len(samples.take(1)) == 1 and len(alive) <= 2
    assert len(samples._head) == 1
    assert sum(1 for _ in samples) == 10
    assert not samples._head
    with pytest.raises(DataError, match="only once"):
        list(samples)
    with pytest.raises(DataError, match="only once"):
        samples.take(1)


def test_a_reader_with_rewind_starts_again():
    class Rewinding(Reader):
        def rewind(self) -> None:
            self.parts = iter(np.split(DATA, 5))

    samples = open_samples(Rewinding(), IMAGE)
    for _ in range(2):
        np.testing.assert_array_equal(collected(samples), DATA)


def test_a_later_file_that_does_not_fit_is_found_at_once(tmp_path):
    assert open_samples(_folder_of_npz(tmp_path), IMAGE).total == 10
    np.savez(tmp_path / "part9.npz", x=DATA[:, :2])
    with pytest.raises(DataError, match=r"part9\.npz.*axis 1 is 2, not 3"):
        open_samples(tmp_path, IMAGE)


def test_limit_and_total(tmp_path):
    samples = open_samples(_npz(tmp_path), IMAGE)
    assert samples.total == 10
    assert open_samples(_stack(tmp_path), IMAGE).total == 10
    assert len(list(samples.limit(3))) == 3
    assert len(list(samples.limit(None))) == 10
    assert len(list(open_samples(_npz(tmp_path), FIXED).limit(9))) == 2


READER = """
import numpy as np
DATA = [{"x": np.full((1, 3, 4, 4), k, np.float32)} for k in range(3)]
NOTHING = 3
class Reader:
    def __init__(self): self.left = iter(DATA)
    def get_next(self): return next(self.left, None)
instance = Reader()
def generate():
    yield from DATA
def broken():
    yield DATA[0]
    raise RuntimeError("camera gone")
def wrong():
    yield 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"reader_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(READER)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("attribute", ["DATA", "Reader", "instance", "generate"])
def test_module_readers(module, attribute):
    path = list(sys.path)
    samples = open_samples(f"{module}:{attribute}", IMAGE)
    assert [feed["x"][0, 0, 0, 0] for feed in samples] == [0, 1, 2]
    assert sys.path == path


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("Missing", "has no 'Missing'"),
        ("NOTHING", ":NOTHING': no calibration data"),
        ("broken", "RuntimeError: camera gone"),
        ("wrong", "item 0: a int, not a dict"),
    ],
)
def test_bad_readers(module, attribute, message):
    with pytest.raises(DataError, match=message):
        list(open_samples(f"{module}:{attribute}", IMAGE))


def test_reader_module_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "syntax_is_wrong.py").write_text("def (")
    for name in ("no_such_module", "syntax_is_wrong"):
        with pytest.raises(DataError, match=f"'{name}:r'.*cannot import"):
            open_samples(f"{name}:r", IMAGE)


def _bad(**arrays: object):
    return lambda folder: arrays


def _object_npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=np.array([{}, 1], dtype=object))
    return folder / "a.npz"


def _truncated_npz(folder: Path) -> Path:
    path = _npz(folder)
    path.write_bytes(path.read_bytes()[:-700])
    return path


def _damaged_npz(folder: Path) -> Path:
    path = _deflated(folder)
    data = bytearray(path.read_bytes())
    data[900:1000] = bytes(100)
    path.write_bytes(data)
    return path


def _truncated_npy(folder: Path) -> Path:
    path = _npy(folder)
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
    _npz(folder)
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
        open_samples(_npy(tmp_path), PAIR)


def test_random_samples_are_seeded_and_fit():
    inputs = (
        TensorSpec("x", np.dtype(np.float16), ("N", 3, "H")),
        TensorSpec("ids", I8, (1, 5)),
        TensorSpec("flag", np.dtype(np.bool_), ()),
    )
    source = RandomSamples(count=3, seed=1, shapes={"x": (2, 3, 8)})
    samples = open_samples(source, inputs)
    first, second = list(samples), list(samples)
    assert len(first) == samples.total == 3
    for a, b in zip(first, second, strict=True):
        assert [a[s.name].dtype for s in inputs] == [s.dtype for s in inputs]
        assert a["x"].shape == (2, 3, 8) and a["ids"].shape == (1, 5) and a["flag"].shape == ()
        assert all((a[s.name] == b[s.name]).all() for s in inputs)
        assert set(a["ids"].ravel()) <= {0, 1}
    assert (first[0]["x"] != first[1]["x"]).any()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (RandomSamples(), "axis 2 .* is dynamic"),
        (RandomSamples(shapes={"y": (1,)}), "'y': no input"),
        (RandomSamples(shapes={"x": (1, 4, 8)}), "does not fit input 'x'"),
        (RandomSamples(count=0, shapes={"x": (1, 3, 8)}), "at least 1"),
    ],
)
def test_random_samples_that_cannot_be(source, message):
    with pytest.raises(FusewrightError, match=message) as caught:
        open_samples(source, (TensorSpec("x", F4, ("N", 3, "H")),))
    assert isinstance(caught.value, (UsageError, DataError))
