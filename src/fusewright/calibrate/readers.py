"""`module:name` readers: the user's own Python that hands out feeds."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusewright.calibrate.arrays import from_memory
from fusewright.calibrate.feeding import Block
from fusewright.calibrate.reading import users_code
from fusewright.errors import DataError

_SPELLING = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_reader_name(text: str) -> bool:
    """Whether `text` is written like `module:name`."""
    return _SPELLING.fullmatch(text) is not None


def load_reader(text: str) -> Any:
    """Imports `module:name`; modules in the current folder are found.

    Raises:
        DataError: no such module or name, or the module fails while it is imported.
    """
    module_name, _, attribute = text.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        with users_code(f"reader {text!r}: cannot import"):
            found: Any = importlib.import_module(module_name)
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    with users_code(f"reader {text!r}"):
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise DataError(f"reader {text!r}: {module_name!r} has no {part!r}")
            found = getattr(found, part)
    return found


def can_start_again(reader: Any) -> bool:
    """Whether a second pass gives the samples again: a class, a function, a list, `rewind()`."""
    if callable(reader) and not hasattr(reader, "__next__"):
        return True
    if hasattr(reader, "get_next"):
        return hasattr(reader, "rewind")
    return isinstance(reader, Iterable) and not isinstance(reader, Iterator)


def reader_blocks(reader: Any, label: str) -> Iterator[Block]:
    """One block for each dict that the reader gives.

    A class or function is called first; then `get_next()` until None, or plain iteration.

    Raises:
        DataError: it is none of these, fails, or gives something that is not a dict of arrays.
    """
    for index, item in enumerate(_guarded(reader, label)):
        where = f"{label}, item {index}"
        if not isinstance(item, Mapping):
            raise DataError(f"{where}: a {type(item).__name__}, not a dict from input to array")
        with users_code(where):
            arrays = {str(name): from_memory(a, f"{where}, {name!r}") for name, a in item.items()}
        yield Block(where, arrays)


def _guarded(reader: Any, label: str) -> Iterator[Any]:
    items, end = _items(reader, label), object()
    while True:
        # Not around the yield: there, a GeneratorExit is of whoever needs no more samples.
        with users_code(label):
            item = next(items, end)
        if item is end:
            return
        yield item


def _items(reader: Any, label: str) -> Iterator[Any]:
    started = callable(reader) and not hasattr(reader, "__next__")
    source = reader() if started else reader
    if hasattr(source, "get_next"):
        if not started and hasattr(source, "rewind"):
            source.rewind()
        while (item := source.get_next()) is not None:
            yield item
    elif isinstance(source, Iterable) and not isinstance(source, (str, bytes)):
        yield from source
    else:
        raise DataError(f"{label}: a {type(source).__name__}, no get_next() and not iterable")
