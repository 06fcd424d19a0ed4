"""Shapes in trtexec's spelling: `--minShapes a:1x3,b:1 --optShapes … --maxShapes …`."""

from __future__ import annotations

import re

from fusewright.cli.parsing import Shape, ShapeRange, parse_shapes
from fusewright.errors import UsageError

OPTIONS = ("--minShapes", "--optShapes", "--maxShapes")
_SHAPE = re.compile(r"\d+(x\d+)*")
# trtexec takes a name that holds ':' or ',' between single quotes.
_ENTRY = re.compile(r"\s*(?:'(?P<quoted>[^']+)'|(?P<name>[^,']+)):(?P<shape>[^,:]+)\s*(?:,|$)")


def all_shapes(
    ranges: list[str] | None, trtexec: tuple[str | None, str | None, str | None]
) -> dict[str, ShapeRange]:
    """Shapes from `--shapes` and from trtexec's three options, as name → (min, opt, max).

    As in trtexec, one that is not given is taken from its neighbours: opt from max, min and max
    from opt.

    Raises:
        UsageError: one that cannot be read, or an input that is in both spellings.
    """
    found = parse_shapes(ranges)
    three = [_parsed(option, text) for option, text in zip(OPTIONS, trtexec, strict=True)]
    for name in dict.fromkeys(name for shapes in three for name in shapes):
        if name in found:
            raise UsageError(f"--shapes and {OPTIONS[1]} both name '{name}'")
        low, best, high = (shapes.get(name) for shapes in three)
        middle = best or high or low
        assert middle is not None
        found[name] = (low or middle, middle, high or middle)
    return found


def _parsed(option: str, text: str | None) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    position = 0
    while text and position < len(text):
        entry = _ENTRY.match(text, position)
        if entry is None or not _SHAPE.fullmatch(entry["shape"].strip()):
            raise UsageError(f"{option} {text}: is not NAME:1x3x224x224,NAME:…")
        name = entry["quoted"] or entry["name"].strip()
        if name in shapes:
            raise UsageError(f"{option} names '{name}' twice")
        shapes[name] = tuple(map(int, entry["shape"].strip().split("x")))
        position = entry.end()
    return shapes
