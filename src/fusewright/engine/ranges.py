"""Shapes of one input, from the smallest to the largest that an engine takes."""

from __future__ import annotations

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]
"""Smallest, optimal and largest shape of one input; or values, of one that holds sizes."""


def spelled(shape: Shape) -> str:
    """`1x3x224x224`, as options have it."""
    return "x".join(map(str, shape))
