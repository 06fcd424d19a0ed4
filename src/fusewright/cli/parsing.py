"""Texts of the command line as values: shapes, numbers, image preprocessing, data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusewright.errors import DataError, UsageError

if TYPE_CHECKING:
    from fusewright.calibrate import ImageOptions

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]

IMAGE_OPTIONS = ("mean", "std", "size", "layout", "color", "scale")

_SHAPE = re.compile(r"\d+(x\d+)*")
_LARGEST = 2**31 - 1  # dimension of TensorRT
_FILES_WITHOUT_IMAGES = (".npz", ".npy")


def parse_shapes(texts: Sequence[str] | None) -> dict[str, ShapeRange]:
    """`NAME:1x3x224x224` or `NAME:MIN:OPT:MAX` as name → (min, opt, max).

    Read from the right, since names hold colons (TensorFlow's `input:0`).

    Raises:
        UsageError: it is neither, or an input is named twice.
    """
    found: dict[str, ShapeRange] = {}
    for text in texts or ():
        name, shapes = _shapes_of(text)
        if name in found:
            raise UsageError(f"--shapes names '{name}' twice")
        found[name] = shapes
    return found


def _shapes_of(text: str) -> tuple[str, ShapeRange]:
    name, *last = text.rsplit(":", 3)
    if len(last) == 3 and name and all(_SHAPE.fullmatch(part) for part in last):
        low, best, high = (sizes(part, f"--shapes {text}") for part in last)
        if len(low) == len(best) == len(high):
            return name, (low, best, high)
    name, _, shape = text.rpartition(":")
    if not name or not _SHAPE.fullmatch(shape):
        raise UsageError(
            f"--shapes {text}: is neither NAME:1x3x224x224 nor NAME:MIN:OPT:MAX with three such"
            " shapes of one rank"
        )
    only = sizes(shape, f"--shapes {text}")
    return name, (only, only, only)


def sizes(shape: str, where: str) -> Shape:
    """`1x3x224x224` as numbers; `where` is the option, for messages.

    Raises:
        UsageError: a dimension that nothing could hold.
    """
    found = tuple(map(int, shape.split("x")))
    if max(found) > _LARGEST:
        raise UsageError(f"{where}: a dimension is above {_LARGEST}")
    return found


def parse_images(given: Sequence[str | None], data: str | None) -> ImageOptions:
    """Image preprocessing from the options as typed, in the order of `IMAGE_OPTIONS`.

    Raises:
        UsageError: one that cannot be read, or one given with data that holds no images.
    """
    from fusewright.calibrate import ImageOptions

    options = zip(IMAGE_OPTIONS, given, strict=True)
    typed = {name: text for name, text in options if text is not None}
    if typed and (data is None or Path(data).suffix.lower() in _FILES_WITHOUT_IMAGES):
        of = "random data" if data is None else data
        raise UsageError(f"--{next(iter(typed))} is for images, and {of} holds none")
    fields: dict[str, Any] = {}
    for name, text in typed.items():
        if name in ("mean", "std"):
            fields[name] = tuple(_number(part, name, text) for part in text.split(","))
        elif name == "scale":
            fields[name] = _number(text, name, text)
        elif name == "size":
            fields[name] = _size(text)
        else:
            fields[name] = text
    return ImageOptions(**fields)


def open_data(
    data: str | None, option: str, random_samples: int | None, shapes: Mapping[str, ShapeRange]
) -> Any:
    """What `optimize` and `compare` take as data: the path or reader given, or random samples.

    Args:
        data: as typed; None where random samples are asked for.
        option: the option that gives data, for messages.
        random_samples: how many random samples; None where they are not asked for.
        shapes: of dynamic inputs, for random samples.

    Raises:
        UsageError: both were given, or neither.
        DataError: there is no such file.
    """
    if data is not None and random_samples is not None:
        raise UsageError(f"{option} and --random-data exclude each other")
    if random_samples is not None:
        from fusewright.calibrate import RandomSamples

        best = {name: shape for name, (_, shape, _) in shapes.items()}
        return RandomSamples(random_samples, shapes=best)
    if data is None:
        raise UsageError(
            f"no data: give {option} DATA (.npz, .npy, a folder, module:name), or --random-data"
            " where there is none"
        )
    if not data:
        raise DataError(f"{option}: the path is empty")
    return data


def _number(part: str, name: str, text: str) -> float:
    above, slash, below = part.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--{name} {text}: '{part}' is not a number") from None


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(f"--size {text}: is neither HxW nor one number")
    return int(sides[0]), int(sides[-1])
