"""Files that a command writes: checked before the work, written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusewright.errors import OutputError

if TYPE_CHECKING:
    from fusewright.graph.save import Pending


def check_targets(outputs: Mapping[str, Path | None], inputs: Mapping[str, Any]) -> None:
    """Refuses outputs that cannot be, by the option that names them.

    Args:
        outputs: option → file to write; None where it was not given.
        inputs: what each file to read is → its path; what is no path of a file is passed over.

    Raises:
        OutputError: an output is an input or another output, is no plain file, or lies in no
            writable folder.
    """
    from fusewright.graph.save import why_not_writable

    wanted = {option: path for option, path in outputs.items() if path is not None}
    seen: dict[Path, str] = {}
    for option, path in wanted.items():
        for what, source in inputs.items():
            if isinstance(source, (str, Path)) and _is_same(path, Path(source)):
                raise OutputError(f"{option} {path}: is {what}, which is never written to")
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise OutputError(f"{option} {path}: is also what {other} names")
        problem = why_not_writable(path)
        if problem is not None:
            raise OutputError(f"{option} {path}: {problem}")


def write_json(data: Any, path: Path, pending: Pending | None = None) -> None:
    """Writes `data` as JSON; with `pending`, when that is committed.

    Raises:
        OutputError: the disk refused; then nothing is left behind.
    """
    from fusewright.graph.save import save_text

    save_text(json_text(data) + "\n", path, pending)


def json_text(data: Any) -> str:
    """Indented JSON; a number that is not finite, which JSON cannot hold, becomes null."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return data


def _is_same(path: Path, source: Path) -> bool:
    try:
        return path.samefile(source)
    except OSError:  # one of the two does not exist
        return False
