"""Tensors whose values lie in other files: checked where they lie, and read, in one way for all.

onnx, onnxruntime and TensorRT each look for such files by rules of their own; here a file is inside
the model's folder (or linked from there into the folder that the model itself is linked from, as
the cache of Hugging Face's hub is), and as long as its tensors say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from fusewright.errors import ModelError
from fusewright.graph.light import byte_size


@dataclass(frozen=True)
class Place:
    """Where the values of a tensor lie: a file by its name in the model, and bytes of it."""

    location: str
    offset: int
    length: int


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the values lie in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def external_files(tensors: Iterable[onnx.TensorProto], path: Path) -> tuple[Path, ...]:
    """The files that hold external data of a checked model at `path`, in name order."""
    names = {place_of(tensor, path).location for tensor in tensors if is_external(tensor)}
    return tuple(path.parent / name for name in sorted(names))


def check_external(tensors: Iterable[onnx.TensorProto], path: Path) -> None:
    """Refuses external data that is not there, not whole, or not inside the model's folder.

    Raises:
        ModelError: with the file, the tensor, and what to do.
    """
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if not is_external(tensor):
            continue
        place = place_of(tensor, path)
        if place.location not in sizes:
            sizes[place.location] = _size(place.location, tensor.name, path)
        end = place.offset + place.length
        if end > sizes[place.location]:
            raise ModelError(
                f"{path}: external data '{place.location}' is too short: tensor '{tensor.name}'"
                f" ends at byte {end}, the file at {sizes[place.location]}"
            )


def load_external(tensors: Iterable[onnx.TensorProto], path: Path) -> None:
    """Reads the values of external tensors of a checked model into them, in place.

    Raises:
        ModelError: a file that is there cannot be read.
    """
    for tensor in tensors:
        if not is_external(tensor):
            continue
        place = place_of(tensor, path)
        file = path.parent / place.location
        try:
            with file.open("rb") as stream:
                stream.seek(place.offset)
                tensor.raw_data = stream.read(place.length)
        except OSError as error:
            raise ModelError(f"{path}: {file} cannot be read: {error.strerror}") from error
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT


def place_of(tensor: onnx.TensorProto, path: Path) -> Place:
    """Where an external tensor says that its values lie.

    Raises:
        ModelError: it does not say, or says numbers that are none.
    """
    said = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{path}: external data of tensor '{tensor.name}'"
    if not said.get("location"):
        raise ModelError(f"{where} names no file (`location`)")
    needed = byte_size(tensor)
    offset, length = _number(said, "offset", 0, where), _number(said, "length", needed, where)
    if length != needed:
        raise ModelError(
            f"{where} has {length} bytes, its shape and type {list(tensor.dims)} take {needed}"
        )
    return Place(said["location"], offset, length)


def _number(said: Mapping[str, str], key: str, default: int, where: str) -> int:
    text = said.get(key, "")
    if not text:
        return default
    # isascii: int() reads other scripts' digits, and no other reader of the file does.
    if not (text.isascii() and text.isdecimal()):
        raise ModelError(f"{where} has {key} {text!r}, which is no count of bytes")
    return int(text)


def _size(location: str, tensor: str, path: Path) -> int:
    file, what = path.parent / location, f"external data '{location}' of tensor '{tensor}'"
    if Path(location).is_absolute():
        raise ModelError(
            f"{path}: {what} has an absolute path; it must lie beside the model, by a relative one"
        )
    try:
        if not file.is_file():
            raise ModelError(f"{path}: {what} is missing; it must lie beside the model")
        inside = {path.parent.resolve(), path.resolve().parent}
        if not any(file.resolve().is_relative_to(folder) for folder in inside):
            raise ModelError(
                f"{path}: {what} lies outside the model's folder ({file.resolve()}); copy it beside"
                " the model and name it there"
            )
        return file.stat().st_size
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: {what} cannot be found: {reason}") from error
