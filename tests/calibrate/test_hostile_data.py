"""Whatever fails while data is read is one line that names where: a file, a member, a reader."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusewright.calibrate.random_data import RandomSamples
from fusewright.calibrate.samples import open_samples
from fusewright.errors import DataError, Stopped
from fusewright.graph.session import TensorSpec

SPEC = TensorSpec("x", np.dtype(np.float32), (1, 3, 8, 8))
DATA = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
STORED, LZMA, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED


def _npz(folder: Path, *members: tuple[str, bytes], method: int = STORED) -> bytearray:
    with zipfile.ZipFile(folder / "d.npz", "w", method) as archive:
        for name, text in members:
            archive.writestr(name, text)
    return bytearray((folder / "d.npz").read_bytes())


def _npy(array: np.ndarray = DATA) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _written(folder: Path, data: bytes, name: str = "d.npz") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def _flagged(central: int, local: int, value: int) -> Callable[[Path], Path]:
    """An archive whose member has another flag or method, in both of its headers."""

    def make(folder: Path) -> Path:
        data = _npz(folder, ("x.npy", _npy()))
        data[data.find(b"PK\1\2") + central] = value
        data[local] = value
        return _written(folder, data)

    return make


def _damaged(method: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        data = _npz(folder, ("x.npy", _npy()), method=method)
        data[len(data) // 2] ^= 255
        return _written(folder, data)

    return make


def _twice(folder: Path) -> Path:
    with pytest.warns(UserWarning, match="Duplicate"):
        _npz(folder, ("x.npy", _npy()), ("x.npy", _npy(DATA + 1)))
    return folder / "d.npz"


def _header(text: bytes) -> Callable[[Path], Path]:
    size = len(text).to_bytes(2, "little")
    return lambda folder: _written(folder, b"\x93NUMPY\1\0" + size + text, "d.npy")


def _shape(shape: str) -> Callable[[Path], Path]:
    return _header(
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode().ljust(118)
    )


def _short_member(folder: Path) -> Path:
    _npz(folder, ("x.npy", _npy()[:-100]))
    return folder / "d.npz"


def _outside(folder: Path) -> Path:
    import onnx

    tensor = onnx.TensorProto(data_type=1, dims=[1, 3, 8, 8], data_location=1)
    tensor.external_data.add(key="location", value="../../secret")
    (folder / "k").mkdir()
    _written(folder / "k", tensor.SerializeToString(), "input_0.pb")
    return folder / "k"


FILES = {
    "encrypted": (_flagged(8, 6, 1), r"d\.npz, member 'x\.npy': .*encrypted"),
    "an unknown compression": (_flagged(10, 8, 97), r"d\.npz, member 'x\.npy'"),
    "damaged LZMA": (_damaged(LZMA), r"d\.npz, member 'x\.npy'"),
    "damaged deflate": (_damaged(DEFLATED), r"d\.npz, member 'x\.npy'"),
    "damaged bytes": (_damaged(STORED), r"d\.npz, member 'x\.npy': .*CRC"),
    "a member twice": (_twice, r"d\.npz: member 'x\.npy' is there twice"),
    "a short member": (_short_member, r"member 'x\.npy': truncated, 100 bytes are missing"),
    "a header without end": (_header(b"{'shape': " + b"(" * 5000 + b"}\n"), r"d\.npy: not a read"),
    "a negative size": (_shape("(-1, 3, 8, 8)"), r"d\.npy: .*negative"),
    "sizes beyond 2**64": (_shape("(2**40, 3, 2**40, 8)"), r"d\.npy"),
    "more than there is": (_shape("(1099511627776, 3, 8, 8)"), r"d\.npy: truncated"),
    "test data that lies outside": (_outside, r"input_0\.pb \(input 'x'\): not a readable"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path) -> None:
    make, message = FILES[name]
    with pytest.raises(DataError, match=message) as raised:
        list(open_samples(make(tmp_path), (SPEC,)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a short member", "a member twice", "encrypted"])
def test_what_the_archive_says_is_looked_at_first(name: str, tmp_path: Path) -> None:
    make, message = FILES[name]
    with pytest.raises(DataError, match=message):
        open_samples(make(tmp_path), (SPEC,))


class _Own(BaseException):
    pass


class _Odd:
    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("no array today")


def _reader(error: BaseException) -> Callable[[], Iterator[Any]]:
    def give() -> Iterator[Any]:
        yield {"x": DATA}
        raise error

    return give


READERS = {
    "sys.exit(0)": (_reader(SystemExit(0)), r"it calls sys\.exit\(0\)"),
    "sys.exit()": (_reader(SystemExit()), r"it calls sys\.exit\(\)"),
    "GeneratorExit": (_reader(GeneratorExit()), "GeneratorExit"),
    "a kind of its own": (_reader(_Own("why")), "_Own: why"),
    "recursion": (_reader(RecursionError("deep")), "RecursionError: deep"),
    "several lines": (_reader(ValueError("first\nsecond")), "ValueError: first$"),
    "an array that fails": ([{"x": _Odd()}], "'x': not an array .*no array today"),
}


@pytest.mark.parametrize("name", READERS)
def test_readers(name: str) -> None:
    reader, message = READERS[name]
    with pytest.raises(DataError, match=message):
        list(open_samples(reader, (SPEC,)))


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Stopped(15)])
def test_an_interrupt_in_a_reader_stays_one(stop: BaseException) -> None:
    with pytest.raises(type(stop)):
        list(open_samples(_reader(stop), (SPEC,)))


def test_a_module_that_exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exits_at_import.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"'exits_at_import:f': cannot import: it calls sys.exit"):
        open_samples("exits_at_import:f", (SPEC,))


def test_a_reader_that_is_not_read_to_its_end() -> None:
    samples = open_samples(_reader(ValueError("too far")), (SPEC,))
    assert len(samples.take(2)) == 2


def test_random_data_larger_than_memory() -> None:
    huge = TensorSpec("x", np.dtype(np.float32), (1, 3, 2**31, 2**31))
    with pytest.raises(DataError, match=r"input 'x' of shape .*no random data of this size"):
        open_samples(RandomSamples(1), (huge,))
