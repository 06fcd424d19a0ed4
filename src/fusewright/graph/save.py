"""Writing files whole or not at all; a model with external data where it exceeds 2 GB."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import onnx

from fusewright.errors import OutputError
from fusewright.graph.light import all_bytes, stored_bytes
from fusewright.graph.stream import write_whole_model
from fusewright.graph.temporary import is_temporary, temporary_files
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


class Pending:
    """Files that are written beside their places, and moved there together: all of them or none.

    Use as a context manager: what is not committed is gone after the block.
    """

    def __init__(self) -> None:
        """Writes nothing yet."""
        self._folders: dict[Path, Path] = {}
        self._parts: dict[Path, Path] = {}

    def __enter__(self) -> Pending:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)

    def part(self, target: Path) -> Path:
        """Where a file lies, under its own name, until it is committed.

        Raises:
            OutputError: nothing can be written beside its place.
        """
        if target not in self._parts:
            if target.parent not in self._folders:
                with _refusing(target):
                    made = tempfile.mkdtemp(dir=target.parent, prefix=".fusewright-")
                self._folders[target.parent] = Path(made)
            self._parts[target] = self._folders[target.parent] / target.name
        return self._parts[target]

    def write(self, target: Path, data: bytes | memoryview) -> None:
        """Writes a file beside its place.

        Raises:
            OutputError: the disk refused.
        """
        part = self.part(target)
        with _refusing(target):
            part.write_bytes(data)

    def commit(self) -> None:
        """Moves the files to their places.

        Raises:
            OutputError: one of them cannot be moved.
        """
        for target, part in self._parts.items():
            with _refusing(target):
                part.replace(target)
        self._parts.clear()


@contextmanager
def committed(pending: Pending | None) -> Iterator[Pending]:
    """The files that a caller commits later, or such of one's own, committed after the block."""
    if pending is not None:
        yield pending
        return
    with Pending() as own:
        yield own
        own.commit()


@contextmanager
def _refusing(target: Path) -> Iterator[None]:
    if is_temporary(target):
        with temporary_files():
            yield
        return
    try:
        yield
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error


def save(
    proto: onnx.ModelProto,
    path: Path,
    workspace: Workspace | None = None,
    pending: Pending | None = None,
) -> None:
    """Writes `proto`; weights of a model over 2 GB go to `<name>.data` beside it.

    With a workspace the weights that lie there become part of what is written; else the references
    stay. With `pending` it appears when that is committed.

    Raises:
        OutputError: the disk refused; nothing is left behind.
    """
    with committed(pending) as files, _refusing(path):
        _save_into(proto, files, path, workspace)


def save_text(text: str, path: Path, pending: Pending | None = None) -> None:
    """Writes a text file (UTF-8), whole or not at all.

    Raises:
        OutputError: the disk refused; nothing is left behind.
    """
    write_whole({path: text.encode()}, pending)


def write_whole(
    contents: Mapping[Path, bytes | memoryview], pending: Pending | None = None
) -> None:
    """Writes each file beside its final place, and moves them there when all are written.

    Raises:
        OutputError: one of them could not be written (a full disk); then none appears.
    """
    with committed(pending) as files:
        for target, data in contents.items():
            files.write(target, data)


def _save_into(
    proto: onnx.ModelProto, files: Pending, path: Path, workspace: Workspace | None
) -> None:
    size = stored_bytes(proto) if workspace is None else all_bytes(proto)
    if size > _LARGEST:
        data = files.part(data_path(path))
        whole = proto if workspace is None else embed(proto, workspace)
        written = files.part(path)
        onnx.save(whole, str(written), save_as_external_data=True, location=data.name)
    elif workspace is None:
        files.part(path).write_bytes(proto.SerializeToString(deterministic=True))
    else:
        with files.part(path).open("wb") as file:
            write_whole_model(proto, workspace.folder, file)
