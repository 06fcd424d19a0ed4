"""Paths as calibration data: npz, npy, and folders of arrays, images or ONNX test data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import numpy_helper

from fusewright.calibrate.arrays import ArraySource, from_memory, from_npy, from_npz
from fusewright.calibrate.feeding import Block
from fusewright.calibrate.images import SUFFIXES, ImageOptions, image_blocks
from fusewright.calibrate.reading import reading
from fusewright.errors import DataError
from fusewright.graph.session import TensorSpec


@dataclass(frozen=True)
class PathData:
    """What a path holds.

    Attributes:
        start: begins a pass over its blocks.
        headers_tell: shapes of all blocks are known without reading values.
        images: number of image files, None where it holds something else.
        where: its name, for messages about a pass without blocks.
    """

    start: Callable[[], Iterable[Block]]
    headers_tell: bool = False
    images: int | None = None
    where: str = "calibration data"


def open_path(path: Path, inputs: Sequence[TensorSpec], images: ImageOptions) -> PathData:
    """How to read `path`; a pass starts anew at each call.

    Raises:
        DataError: no such path, nothing in it that is calibration data, or more than one kind.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        return _open_folder(path, inputs, images)
    if path.suffix.lower() in (".npz", ".npy"):
        return PathData(lambda: (_array_block(path, inputs),), headers_tell=True)
    if path.suffix.lower() in SUFFIXES:
        return PathData(lambda: image_blocks([path], only_input(inputs, path), images), images=1)
    raise DataError(f"{path}: not calibration data (.npz, .npy, or a folder)")


def _open_folder(folder: Path, inputs: Sequence[TensorSpec], images: ImageOptions) -> PathData:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    arrays = [f for f in files if f.parent == folder and f.suffix.lower() in (".npz", ".npy")]
    pictures = [f for f in files if f.suffix.lower() in SUFFIXES]
    sets = sorted({f.parent for f in files if _is_test_input(f, folder)}, key=_natural)
    kinds = [name for name, found in (("arrays", arrays), ("images", pictures)) if found]
    kinds += ["ONNX test data"] if sets else []
    if not kinds:
        raise DataError(f"{folder}: no .npz, .npy, images or test_data_set_* in this folder")
    if len(kinds) > 1:
        raise DataError(f"{folder}: holds {' and '.join(kinds)}; give the folder of one kind")
    if sets:
        return PathData(lambda: (_test_block(found, inputs) for found in sets))
    if arrays:
        return PathData(lambda: (_array_block(f, inputs) for f in arrays), headers_tell=True)
    spec = only_input(inputs, folder)
    return PathData(lambda: image_blocks(pictures, spec, images), images=len(pictures))


def _array_block(path: Path, inputs: Sequence[TensorSpec]) -> Block:
    if path.suffix.lower() == ".npz":
        return Block(str(path), from_npz(path))
    return Block(str(path), {only_input(inputs, path).name: from_npy(path)})


def only_input(inputs: Sequence[TensorSpec], where: Path | str) -> TensorSpec:
    """The input of a model that has just one.

    Raises:
        DataError: it has more, or none.
    """
    if len(inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in inputs)
        raise DataError(f"{where}: the model has {len(inputs)} inputs ({names}); use .npz by name")
    return inputs[0]


def _is_test_input(file: Path, folder: Path) -> bool:
    """input_*.pb in the folder itself or in a test_data_set_* folder right below it."""
    if not re.fullmatch(r"input_\d+\.pb", file.name):
        return False
    below = file.parent.parent == folder and file.parent.name.startswith("test_data_set_")
    return below or file.parent == folder


def _natural(path: Path) -> list[int | str]:
    return [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", path.name)]


def _test_block(folder: Path, inputs: Sequence[TensorSpec]) -> Block:
    files = sorted(folder.glob("input_*.pb"), key=_natural)
    if len(files) != len(inputs):
        raise DataError(f"{folder}: {len(files)} input_*.pb, the model has {len(inputs)} inputs")
    return Block(str(folder), dict(_tensors(files, inputs)))


def _tensors(
    files: Sequence[Path], inputs: Sequence[TensorSpec]
) -> Iterator[tuple[str, ArraySource]]:
    for file, spec in zip(files, inputs, strict=True):
        where = f"{file} (input {spec.name!r})"
        with reading(where, "not a readable TensorProto"):
            tensor = onnx.TensorProto.FromString(file.read_bytes())
            array = numpy_helper.to_array(tensor, base_dir=str(file.parent))
        yield spec.name, from_memory(array, where)
