"""Temporary files: a disk that is full where they lie is said so, and not the model blamed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusewright.errors import OutputError

PREFIX = "fusewright-"
"""Of the names of temporary folders."""
_ROOM = 1 << 20


@contextmanager
def temporary_files() -> Iterator[None]:
    """Around what writes them.

    Raises:
        OutputError: the disk refused, with the folder and what to do.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(_said(error.strerror or str(error))) from error


def blame_full_disk(folder: Path, error: Exception) -> None:
    """Raises another error for one of onnxruntime's, where the disk that it wrote to is full.

    It says that it failed, and neither why nor where.

    Raises:
        OutputError: less than a megabyte is left.
    """
    if shutil.disk_usage(folder).free < _ROOM:
        raise OutputError(_said("no space left on device")) from error


def is_temporary(path: Path) -> bool:
    """Whether a file lies in a temporary folder of ours."""
    return any(parent.name.startswith(PREFIX) for parent in path.parents)


def _said(reason: str) -> str:
    return (
        f"temporary files cannot be written to {tempfile.gettempdir()}: {reason}; set TMPDIR to a"
        " folder with room for the weights, twice"
    )
