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
        int8_head_sizes: of which fused INT8 attention exists, in elements per head.
        int8_sequence: longest sequence of fused INT8 attention, in tokens (TensorRT's
            documentation of fused multi-head attention).
    """

    name: str
    int8_group_multiple: int = 4
    int8_head_sizes: tuple[int, ...] = (16, 32, 64)
    int8_sequence: int = 512


TENSORRT = Target("tensorrt")
