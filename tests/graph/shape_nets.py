"""Shapes computed in a graph, and that folding them keeps the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from building import Net, assert_equal
from propagating import SIZES, feed_of

from fusewright.graph.model import Model

END = [(1 << 63) - 1]


def dim_of(net: Net, x: str, axis: int) -> str:
    return net.op("Unsqueeze", net.op("Gather", net.op("Shape", x), np.int64(axis)), [0])


def shape_of(net: Net, *parts: str | int) -> str:
    listed = [[part] if isinstance(part, int) else part for part in parts]
    return net.op("Concat", *listed, axis=0)


def assert_same(
    proto: onnx.ModelProto, model: Model, at: Sequence[Mapping[str, int]] = SIZES
) -> None:
    for sizes in at:
        assert_equal(proto, model, feed_of(proto, sizes, seed=1))
