"""A command of Fusewright's in this process, and whether it ends as every command must."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from fusewright.cli.edge import run

# Of a temporary folder that is gone when someone reads the finding.
_SHOWN = 300


def faults(arguments: Sequence[object]) -> list[tuple[str, str]]:
    """What is wrong with how a command ended: (kind, detail); it may fail, in one line.

    The streams are caught at their descriptors, so that what native code prints is seen too.
    """
    texts = [str(a) for a in arguments]
    with tempfile.TemporaryFile() as caught:
        try:
            with _caught(caught.fileno()):
                code = run(texts)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            last = traceback.format_exc().splitlines()
            return [("escaped", f"{texts[0]}: {last[-1]}"[:_SHOWN])]
        caught.seek(0)
        lines = [x for x in caught.read().decode(errors="replace").splitlines() if x.strip()]
    told = "\n".join(lines)
    if "a bug in Fusewright" in told:
        return [("bug line", f"{texts[0]}: {lines[-1]}"[:_SHOWN])]
    if code == 0:
        return [("noise", f"{texts[0]}: {lines[0]}"[:_SHOWN])] if lines else []
    errors = [line for line in lines if line.startswith("error: ")]
    others = [line for line in lines if not line.startswith(("error: ", "  "))]
    if len(errors) != 1 or others:
        return [("not one line", f"{texts[0]} {code}: {told}"[:_SHOWN])]
    return []


@contextmanager
def _caught(descriptor: int) -> Iterator[None]:
    """Standard error into a file; standard output, which holds results, away."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(descriptor, 2)
    # Python's own streams may lie elsewhere: pytest's do.
    with os.fdopen(os.dup(nowhere), "w") as out, os.fdopen(os.dup(descriptor), "w") as err:
        try:
            with redirect_stdout(out), redirect_stderr(err):
                yield
        finally:
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            for number in (*kept, nowhere):
                os.close(number)


def as_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
