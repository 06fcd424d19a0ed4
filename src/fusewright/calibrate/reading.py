"""The boundary to data that others wrote: whatever fails there is one line that names where."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fusewright.errors import DataError, FusewrightError, Stopped
from fusewright.graph.session import first_line


@contextmanager
def reading(where: str, what: str) -> Iterator[None]:
    """Turns what NumPy, zipfile, Pillow or protobuf raise on a file into a `DataError`.

    They raise of every kind, by what is damaged: zlib.error, LZMAError, RuntimeError for an
    encrypted member, NotImplementedError for a compression, SyntaxError, RecursionError and
    MemoryError for a header.

    Args:
        where: the file, and the member in it.
        what: what is wrong with it then, such as "not a readable image".

    Raises:
        DataError: whatever went wrong inside.
    """
    try:
        yield
    except FusewrightError:
        raise
    except Exception as error:
        raise DataError(f"{where}: {what} ({first_line(error)})") from error


@contextmanager
def unwarned() -> Iterator[None]:
    """Keeps the warnings of NumPy and Pillow about a file back; nothing may be yielded inside.

    A large image, a header of Python 2, a palette with transparency: what is read is the same.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def users_code(where: str) -> Iterator[None]:
    """Turns what a reader raises into a `DataError`: SystemExit and its own kinds as well.

    A reader that calls `sys.exit()` must not end the command as if all were well. Ctrl-C and
    signals pass.

    Raises:
        DataError: whatever went wrong inside.
    """
    try:
        yield
    except (FusewrightError, Stopped, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise DataError(f"{where}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({'' if error.code is None else repr(error.code)})"
    name, text = type(error).__name__, first_line(error)
    return name if text == name else f"{name}: {text}"
