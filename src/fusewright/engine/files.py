"""Results that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fusewright.errors import OutputError


def check_writable(target: Path, model: Path) -> None:
    """Refuses an output that cannot be, before the work for it is done.

    Raises:
        OutputError: it is the input, a folder, or lies in no writable folder.
    """
    if target.resolve() == model.resolve():
        raise OutputError(f"the output {target} is the input; name another file")
    if target.is_dir():
        raise OutputError(f"the output {target} is a folder; name a file in it")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"cannot write {target}: the folder {target.parent} is not writable")


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
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
