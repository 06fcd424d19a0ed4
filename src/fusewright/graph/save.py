"""Writing files whole or not at all; a model with external data where it exceeds 2 GB."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx

from fusewright.errors import OutputError
from fusewright.graph.light import all_bytes, stored_bytes
from fusewright.graph.stream import write_whole_model
from fusewright.graph.workspace import Workspace, embed

# Of weights; protobuf takes 2 GB, and the nodes (and Constants inside them) need room too.
_LARGEST = 1_900_000_000


def check_output(path: Path, *sources: Path) -> None:
    """Refuses an output that is one of the input's files, or cannot be written.

    The name of the external data that a large output may need is looked at as well.

    Raises:
        OutputError: with the reason.
    """
    for written in (path, data_path(path)):
        if written.exists() and any(written.samefile(source) for source in sources):
            raise OutputError(f"{written}: is the input file, which is never written to")
    problem = why_not_writable(path)
    if problem is not None:
        raise OutputError(f"{path}: {problem}")


def data_path(path: Path) -> Path:
    """Where the weights of a model over 2 GB are written."""
    return path.with_name(f"{path.name}.data")


def why_not_writable(path: Path) -> str | None:
    """What is wrong with a file to write, as far as it shows before the work; else None."""
    if path.is_dir():
        return "is a folder"
    if path.exists() and not path.is_file():
        return "is not a plain file"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not os.access(path.parent, os.W_OK):
        return f"the folder {path.parent} cannot be written to"
    return None


def save(proto: onnx.ModelProto, path: Path, workspace: Workspace | None = None) -> None:
    """Writes `proto`; weights of a model over 2 GB go to `<name>.data` beside it.

    With a workspace the weights that lie there become part of what is written; else the references
    stay.

    Raises:
        OutputError: the disk refused; nothing is left behind.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fusewright-") as folder:
            _save_into(proto, Path(folder), path, workspace)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def save_text(text: str, path: Path) -> None:
    """Writes a text file (UTF-8), whole or not at all.

    Raises:
        OutputError: the disk refused; nothing is left behind.
    """
    write_whole({path: text.encode()})


def write_whole(contents: Mapping[Path, bytes | memoryview]) -> None:
    """Writes each file beside its final place, and moves them there when all are written.

    Raises:
        OutputError: one of them could not be written (a full disk); then none appears.
    """
    parts = {target: target.with_name(f".{target.name}.{os.getpid()}.part") for target in contents}
    target = Path()
    try:
        for target, data in contents.items():
            parts[target].write_bytes(data)
        for target, part in parts.items():
            part.replace(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _save_into(
    proto: onnx.ModelProto, folder: Path, path: Path, workspace: Workspace | None
) -> None:
    written, data = folder / path.name, data_path(path).name
    size = stored_bytes(proto) if workspace is None else all_bytes(proto)
    if size > _LARGEST:
        whole = proto if workspace is None else embed(proto, workspace)
        onnx.save(whole, str(written), save_as_external_data=True, location=data)
        (folder / data).replace(data_path(path))
    elif workspace is None:
        written.write_bytes(proto.SerializeToString(deterministic=True))
    else:
        with written.open("wb") as file:
            write_whole_model(proto, workspace.folder, file)
    written.replace(path)
