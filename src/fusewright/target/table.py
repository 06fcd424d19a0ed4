"""One row per target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """What an engine can do.

    Attributes:
        name: as the user writes it.
        int8_group_multiple: channels per group, in and out, of a grouped INT8 convolution must be
            multiples of this (TensorRT's support matrix for grouped convolutions).
    """

    name: str
    int8_group_multiple: int = 4


TENSORRT = Target("tensorrt")
