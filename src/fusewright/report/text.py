"""Small texts of the tables: names cut in the middle, byte counts, plurals."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# Names that a reason quotes; a pattern of the user's (`excluded by '*'`) is not one.
_QUOTED = re.compile(r"(?<!by )'([^']*)'")
_UNITS = ("B", "KB", "MB", "GB", "TB")


def shorten(name: str, width: int) -> str:
    """`name` in at most `width` columns; the middle goes, both ends tell names apart."""
    if len(name) <= width:
        return name
    kept = max(width - 1, 1)
    tail = (kept + 1) // 2
    return f"{name[: kept - tail]}…{name[-tail:]}"


def byte_count(size: float) -> str:
    """1500 → `1.5 KB`."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def counted(number: int, noun: str) -> str:
    """`1 group`, `2 groups`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shorten_quoted(text: str, width: int) -> str:
    """`text` with every 'quoted name' in it in at most `width` columns."""
    return _QUOTED.sub(lambda found: f"'{shorten(found[1], width)}'", text)


def without_names(text: str) -> str:
    """`text` with '…' for every quoted name: reasons that then are equal are of one sort."""
    return _QUOTED.sub("'…'", text)


def some_of(names: Iterable[str], shown: int, width: int) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    text = ", ".join(shorten(name, width) for name in names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"


def plain_table(*columns: str, right: Iterable[str] = (), wrapped: Iterable[str] = ()) -> Table:
    """A table without lines: bold heads, two spaces between columns.

    Args:
        *columns: heads.
        right: those of numbers, flush right.
        wrapped: those whose text is folded; the others keep to one line.
    """
    right, wrapped = set(right), set(wrapped)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column not in wrapped,
            overflow="fold" if column in wrapped else "ellipsis",
        )
    return table


def section(title: str, *body: RenderableType) -> list[RenderableType]:
    """A heading with its tables or lines, indented below it."""
    heading = Text(f"\n{title}", style="bold")
    return [heading, *(Padding(part, (0, 0, 0, 2), expand=False) for part in body)]


def entry(heading: str | Text, *lines: str) -> RenderableType:
    """One item of a list: its heading, and below it texts that are wrapped, indented."""
    return Group(heading, *(Padding(line, (0, 0, 0, 4)) for line in lines))
