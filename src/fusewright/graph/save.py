"""Writing a model: whole or not at all, external data where it exceeds protobuf's 2 GB."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx

from fusewright.errors import OutputError

# Protobuf's limit is 2 GB; room is left for the nodes.
_LARGEST = 2_000_000_000 - (1 << 24)


def check_output(path: Path, source: Path) -> None:
    """Refuses an output that is the input, or whose folder cannot be written.

    Raises:
        OutputError: with the reason.
    """
    if path.exists() and path.samefile(source):
        raise OutputError(f"{path}: the output is the input file, which is never written to")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: its folder does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: its folder cannot be written to")


def save(proto: onnx.ModelProto, path: Path) -> None:
    """Writes `proto`; weights of a model over 2 GB go to `<name>.data` beside it.

    Raises:
        OutputError: the disk refused; nothing is left behind.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fusewright-") as folder:
            _save_into(proto, Path(folder), path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def save_text(text: str, path: Path) -> None:
    """Writes a text file (UTF-8), whole or not at all.

    Raises:
        OutputError: the disk refused; nothing is left behind.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fusewright-") as folder:
            written = Path(folder) / path.name
            written.write_text(text, encoding="utf-8")
            written.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _save_into(proto: onnx.ModelProto, folder: Path, path: Path) -> None:
    written, data = folder / path.name, f"{path.name}.data"
    if proto.ByteSize() <= _LARGEST:
        written.write_bytes(proto.SerializeToString(deterministic=True))
    else:
        onnx.save(proto, str(written), save_as_external_data=True, location=data)
        (folder / data).replace(path.with_name(data))
    written.replace(path)
