"""Shapes in trtexec's spelling: `--minShapes a:1x3,b:1 --optShapes … --maxShapes …`."""

from __future__ import annotations

import re

from fusewright.cli.parsing import Shape, ShapeRange, parse_shapes, sizes
from fusewright.errors import UsageError

OPTIONS = ("--minShapes", "--optShapes", "--maxShapes")
Typed = tuple[str, str, str]
_SHAPE = re.compile(r"\d+(x\d+)*")
# trtexec takes a name that holds ':' or ',' between single quotes.
_ENTRY = re.compile(r"\s*(?:'(?P<quoted>[^']+)'|(?P<name>[^,']+)):(?P<shape>[^,:]+)\s*(?:,|$)")


def all_shapes(
    ranges: list[str] | None, trtexec: tuple[str | None, str | None, str | None]
) -> tuple[dict[str, ShapeRange], dict[str, Typed]]:
    """Shapes from `--shapes` and from trtexec's three options, as name → (min, opt, max).

    As in trtexec, one that is not given is taken from its neighbours: opt from max, min and max
    from opt.

    Returns:
        The shapes, and for those of trtexec's options which of them each came from.

    Raises:
        UsageError: one that cannot be read, or an input that is in both spellings.
    """
    found = parse_shapes(ranges)
    typed: dict[str, Typed] = {}
    three = [_parsed(option, text) for option, text in zip(OPTIONS, trtexec, strict=True)]
    for name in dict.fromkeys(name for shapes in three for name in shapes):
        given = [option for option, shapes in zip(OPTIONS, three, strict=True) if name in shapes]
        if name in found:
            raise UsageError(f"--shapes and {given[0]} both name '{name}'")
        low, best, high = (option if option in given else None for option in OPTIONS)
        middle = best or high or given[0]
        typed[name] = (low or middle, middle, high or middle)
        lowest, optimal, highest = (three[OPTIONS.index(option)][name] for option in typed[name])
        found[name] = (lowest, optimal, highest)
    return found, typed


def _parsed(option: str, text: str | None) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    position = 0
    while text is not None and (position < len(text) or not shapes):
        entry = _ENTRY.match(text, position)
        if entry is None or not _SHAPE.fullmatch(entry["shape"].strip()):
            raise UsageError(f"{option} {text}: is not NAME:1x3x224x224,NAME:…")
        name = entry["quoted"] or entry["name"].strip()
        if name in shapes:
            raise UsageError(f"{option} names '{name}' twice")
        shapes[name] = sizes(entry["shape"].strip(), f"{option} {text}")
        position = entry.end()
    return shapes
