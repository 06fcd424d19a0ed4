"""Arrays that are read a few rows at a time: npy files, npz members, and what is in memory."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from fusewright.calibrate.reading import reading, unwarned
from fusewright.errors import DataError

# Rows are read in blocks of about this many bytes, one row at least.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class ArraySource:
    """An array that may be larger than memory.

    Attributes:
        where: file and member, for messages.
        shape: its whole shape.
        dtype: as stored.
        blocks: each call starts anew and yields consecutive parts along axis 0 (an array of rank
            0 comes as it is).
    """

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[], Iterator[np.ndarray]]


def from_memory(array: Any, where: str) -> ArraySource:
    """Wraps an array, or what NumPy makes one of.

    Raises:
        DataError: it holds Python objects.
    """
    with reading(where, "not an array"):
        array = np.asarray(array)
    _no_objects(array.dtype, where)
    return ArraySource(where, array.shape, array.dtype, lambda: iter((array,)))


def from_npy(path: Path) -> ArraySource:
    """An .npy file, read in blocks of rows (plain reads: mapped pages count as resident memory).

    Raises:
        DataError: not an .npy file, a truncated one, or one that holds Python objects.
    """
    with reading(str(path), "not a readable .npy array"):
        size = path.stat().st_size
    return _open(str(path), lambda: path.open("rb"), size)


def from_npz(path: Path) -> Mapping[str, ArraySource]:
    """The members of an .npz file by name, stored or deflated, each read in blocks of rows.

    Raises:
        DataError: not a zip file, a member that is not .npy, is there twice, is truncated by the
            sizes that the archive and its header say, or holds Python objects.
    """
    with reading(str(path), "not an .npz file, or truncated"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    seen: dict[str, ArraySource] = {}
    for member in members:
        name = member.filename
        if not name.endswith(".npy"):
            raise DataError(f"{path}: member {name!r} is not an .npy array")
        if name.removesuffix(".npy") in seen:
            raise DataError(f"{path}: member {name!r} is there twice; which one is meant?")
        where, start = f"{path}, member {name!r}", partial(_Member, path, name)
        seen[name.removesuffix(".npy")] = _open(where, start, member.file_size)
    return seen


class _Member:
    """A file object over one zip member that owns its archive."""

    def __init__(self, path: Path, name: str) -> None:
        self._archive = zipfile.ZipFile(path)
        self._file = self._archive.open(name)
        self.read = self._file.read
        self.tell = self._file.tell

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._archive.close()


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    size: int


def _open(where: str, start: Callable[[], Any], size: int) -> ArraySource:
    """`size` is how many bytes there are, header and all."""
    with reading(where, "not a readable .npy array"), start() as file:
        header = _header(file)
    _no_objects(header.dtype, where)
    # Here, not where calibration comes to the end of it, minutes later.
    missing = header.size + math.prod(header.shape) * header.dtype.itemsize - size
    if missing > 0:
        raise DataError(f"{where}: truncated, {missing} bytes are missing")

    def blocks() -> Iterator[np.ndarray]:
        with reading(where, "truncated or damaged"), start() as file:
            yield from _blocks(file, _header(file), where)

    return ArraySource(where, header.shape, header.dtype, blocks)


def _header(file: IO[bytes]) -> _Header:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version[0]}.{version[1]} is for structured arrays")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    with unwarned():
        shape, fortran, dtype = read(file)
    if min(shape, default=0) < 0:
        raise ValueError(f"shape {shape} has a negative size")
    return _Header(shape, fortran, dtype, file.tell())


def _blocks(file: IO[bytes], header: _Header, where: str) -> Iterator[np.ndarray]:
    shape, dtype = header.shape, header.dtype
    if header.fortran and len(shape) > 1:
        # Column order has no rows to stream: the one case that is read whole.
        yield _read(file, shape[::-1], dtype, where).T
        return
    if not shape:
        yield _read(file, (), dtype, where)
        return
    row = math.prod(shape[1:]) * dtype.itemsize
    step = max(1, _BLOCK // max(row, 1))
    for start in range(0, shape[0], step):
        yield _read(file, (min(step, shape[0] - start), *shape[1:]), dtype, where)
    # A deflated member is checked (CRC) when its end is read.
    file.read(1)


def _read(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, where: str) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    data = file.read(size)
    if len(data) != size:
        raise DataError(f"{where}: truncated, {size - len(data)} bytes are missing")
    return np.frombuffer(data, dtype).reshape(shape)


def _no_objects(dtype: np.dtype, where: str) -> None:
    if dtype.hasobject or dtype.fields is not None:
        raise DataError(f"{where}: holds {dtype} (pickled), only plain arrays are read")
