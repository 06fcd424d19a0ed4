"""What C++ code prints past its logger: kept from the terminal while TensorRT works."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_STDERR = 2
# The descriptor belongs to the process: of builds side by side, the first one's time counts.
_TAKEN = threading.Lock()


@contextmanager
def without_native_stderr() -> Iterator[None]:
    """Drops what native code writes to stderr; what Python writes still gets there.

    TensorRT's parser and its compiler print some errors there that they tell their logger too.
    """
    if not _TAKEN.acquire(blocking=False):
        yield
        return
    try:
        with _redirected():
            yield
    finally:
        _TAKEN.release()


@contextmanager
def _redirected() -> Iterator[None]:
    try:
        terminal = os.dup(_STDERR)
    except OSError:  # it is closed: nobody sees what is printed
        yield
        return
    before = sys.stderr
    with os.fdopen(terminal, "w", buffering=1, errors="backslashreplace") as direct:
        if _is_descriptor(before):
            before.flush()
            sys.stderr = direct
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(terminal, _STDERR)
            sys.stderr = before


def _is_descriptor(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.fileno() == _STDERR
    except (OSError, AttributeError):
        return False  # a stream of its own, such as a test's
