"""The weights of a layer by the channel of its input that they are multiplied with."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.walk import attribute

LAYERS = frozenset({"Conv", "ConvTranspose", "MatMul"})


def channels_of(node: gs.Node, opset: int) -> tuple[int, int]:
    """How many channels a layer reads, and on which axis, from the end: 1 is the last."""
    shape = node.inputs[1].shape
    if node.op == "MatMul":
        return int(shape[0]), 1
    if node.op == "ConvTranspose":
        return int(shape[0]), len(shape) - 1
    return int(shape[1]) * int(attribute(node, "group", opset) or 1), len(shape) - 1


def by_channel(factors: np.ndarray, node: gs.Node, opset: int) -> np.ndarray:
    """Factors [channels], shaped so that the layer's weight can be multiplied by them."""
    shape = node.inputs[1].shape
    if node.op != "Conv":
        return factors.reshape(-1, *(1 for _ in shape[1:]))
    groups = int(attribute(node, "group", opset) or 1)
    rows = np.repeat(factors.reshape(groups, -1), int(shape[0]) // groups, axis=0)
    return rows.reshape(*rows.shape, *(1 for _ in shape[2:]))


def noise_of_rounding(
    node: gs.Node, weight: np.ndarray, channels: tuple[np.ndarray, np.ndarray, float], opset: int
) -> float:
    """Power that rounding x·c and W/c to INT8 adds to a layer's outputs, by the model of
    independent errors of step²/12.

    Args:
        weight: W, float.
        channels: c and the mean square of x, [channels] each, and the step of x·c.
    """
    factors, mean_square, step = channels
    divided = np.square(weight / by_channel(factors, node, opset), dtype=np.float64)
    axis = {"MatMul": 1, "Conv": 0}.get(node.op)
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    steps = np.broadcast_to(divided.max(axis=others, keepdims=True) / 127.0**2, weight.shape)
    power = np.broadcast_to(by_channel(mean_square * factors**2, node, opset), weight.shape)
    return float((step**2 * divided.sum() + (power * steps).sum()) / 12.0)


def signal(node: gs.Node, weight: np.ndarray, variance: np.ndarray, opset: int) -> float:
    """Power of a layer's outputs, their means left out, where channels are independent."""
    power = by_channel(variance, node, opset)
    return float((np.square(weight, dtype=np.float64) * power).sum())
