"""Small models that select rows by scores some of which are equal but for rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from building import Net
from onnx import TensorProto, helper

ROWS, WIDTH, KEPT = 12, 6, 5
NEAR = np.float32(1e-6) * np.tile(np.float32([-1, 1]), ROWS // 2)


def feed(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows in pairs that are equal: their scores are ties."""
    random = np.random.default_rng(seed)
    rows = random.uniform(0.5, 1.5, (ROWS // 2, WIDTH)).astype(np.float32)
    values = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
    return {"x": np.repeat(rows, 2, axis=0), "v": values}


def build(
    tail: str,
    noise: np.ndarray | float = 0.0,
    before: float = 1.0,
    behind: float = 1.0,
    opset: int = 18,
    **settings: int,
) -> onnx.ModelProto:
    """A layer of scores, a tail of `TAILS` that selects by them, and a layer behind it.

    Args:
        tail: how rows of the features are selected.
        noise: added to the scores [ROWS].
        before: factor of the scores.
        behind: factor of what the last layer gives.
        opset: of the model.
        **settings: of the tail.
    """
    net = Net(opset, seed=1)
    x, v = net.input("x", ROWS, WIDTH), net.input("v", ROWS, WIDTH)
    weight = net.store(np.full((WIDTH, 1), 1 / WIDTH))
    scores = net.op("Squeeze", net.op("MatMul", x, weight), [1])
    scores = net.op("Mul", net.op("Add", scores, np.float32(noise)), np.float32(before))
    features = net.op("MatMul", v, net.draw(WIDTH, WIDTH), name="features")
    outputs = TAILS[tail](net, net.op("Identity", scores, name="scores"), features, **settings)
    rows = net.op("MatMul", outputs[0], net.draw(WIDTH, 3))
    last = net.op("Mul", rows, np.float32(behind), name="last")
    return net.proto(last, *outputs[1:])


def _topk(net: Net, scores: str, features: str, k: int = KEPT, largest: int = 1) -> list[str]:
    values, indices = net.op("TopK", scores, [k], outputs=2, name="topk", axis=0, largest=largest)
    return [net.op("Gather", features, indices, axis=0), values, indices]


def _nms(net: Net, scores: str, features: str, k: int = KEPT) -> list[str]:
    corner = np.arange(ROWS, dtype=np.float32)[None, :, None]
    boxes = net.store(np.concatenate([corner, corner, corner + 0.9, corner + 0.9], axis=2))
    three = net.op("Reshape", scores, [1, 1, ROWS])
    limits = np.array([k], np.int64), np.float32([0.5]), np.float32([0.0])
    found = net.op("NonMaxSuppression", boxes, three, *limits, name="nms")
    row = net.op("Squeeze", net.op("Slice", found, [2], [3], [1]), [1])
    return [net.op("Gather", features, row, axis=0), found]


def _threshold(net: Net, scores: str) -> str:
    return net.op("GreaterOrEqual", scores, net.op("Slice", scores, [5], [6]))


def _nonzero(net: Net, scores: str, features: str) -> list[str]:
    where = net.op("NonZero", _threshold(net, scores), name="nonzero")
    return [net.op("Gather", features, net.op("Squeeze", where, [0]), axis=0)]


def _compress(net: Net, scores: str, features: str) -> list[str]:
    kept = _threshold(net, scores)
    return [net.op("Compress", features, kept, axis=0, name="compress")]


def _argmax(net: Net, scores: str, features: str) -> list[str]:
    best = net.op("ArgMax", scores, axis=0, keepdims=1, name="argmax")
    return [net.op("Gather", features, best, axis=0), best]


def _inside(net: Net, scores: str, features: str, k: int = KEPT) -> list[str]:
    """A TopK in the body of a Loop that runs once."""
    ints, floats, flag = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
    values = helper.make_tensor("k", ints, [1], [k])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=values),
        helper.make_node("TopK", [scores, "k"], ["best", "which"], axis=0),
        helper.make_node("Gather", [features, "which"], ["rows"], axis=0),
        helper.make_node("Identity", ["go"], ["on"]),
    ]
    inputs = [helper.make_tensor_value_info(*v) for v in (("i", ints, []), ("go", flag, []))]
    outputs = [("on", flag, []), ("rows", floats, [None, WIDTH])]
    body = helper.make_graph(
        nodes, "body", inputs, [helper.make_tensor_value_info(*v) for v in outputs]
    )
    once = net.store(np.int64(1), dtype=np.int64)
    rows = net.op("Loop", once, net.store(True, dtype=bool), body=body, name="loop")
    return [net.op("Squeeze", rows, [0])]


TAILS: dict[str, Callable[..., list[str]]] = {
    "topk": _topk,
    "nms": _nms,
    "nonzero": _nonzero,
    "compress": _compress,
    "argmax": _argmax,
    "inside": _inside,
}
