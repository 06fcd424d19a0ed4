"""Whether each activation's scale is near the best there is for its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

# Decibels below the best scale, and so few that it matters.
MARGIN, ENOUGH = 10.0, 20.0


# Behind these a pair's readers do not see all of its values: its range is of what they see.
CUTS = frozenset({"Gather", "GatherElements", "GatherND", "MaxPool", "Slice", "Split"})
_MOVES = frozenset({"Concat", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose"})


def poor_pairs(model: bytes, feeds: Sequence[dict[str, np.ndarray]]) -> Iterator[str]:
    """A line for each INT8 scale of activations that is far from the best one.

    The best is found by trying, on the samples of the calibration. What shares a scale is judged
    together: parts of one Concat.
    """
    proto = onnx.ModelProto.FromString(model)
    stored = {t.name: t for t in proto.graph.initializer}
    pairs = [
        n
        for n in proto.graph.node
        if n.op_type == "QuantizeLinear"
        and n.input[0] not in stored
        and len(n.input) > 2
        and n.input[2] in stored
        and stored[n.input[2]].data_type == TensorProto.INT8
        and not stored[n.input[1]].dims
        and not _is_cut(proto, n.output[0])
        and not _is_special(proto, n)
    ]
    if not pairs:
        return
    known = {v.name for v in (*proto.graph.input, *proto.graph.output)}
    wanted = [n for n in dict.fromkeys(p.input[0] for p in pairs) if n not in known]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in wanted)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options)
    names = [v.name for v in session.get_outputs()]
    seen = [dict(zip(names, session.run(None, f), strict=True)) | dict(f) for f in feeds]
    for name in dict.fromkeys(pair.input[1] for pair in pairs):
        sharing = [pair.input[0] for pair in pairs if pair.input[1] == name]
        values = np.concatenate([np.ravel(s[t]) for t in sharing for s in seen]).astype(np.float64)
        scale = float(numpy_helper.to_array(stored[name]))
        found, best = _sqnr(values, scale), best_sqnr(values)
        if found < min(best - MARGIN, ENOUGH):
            yield (
                f"{', '.join(sharing)}: {found:.1f} dB by scale {scale:.3g},"
                f" the best has {best:.1f}"
            )


def _is_special(proto: onnx.ModelProto, pair: onnx.NodeProto) -> bool:
    """Whether its scale is of other values than it reads.

    A Pad for a MaxPool holds what no maximum takes; the steps of a Softmax are what its engine
    fuses, where these do not cost much.
    """
    return any(
        n.op_type in ("Pad", "Softmax") and pair.input[0] in n.output for n in proto.graph.node
    )


def _is_cut(proto: onnx.ModelProto, tensor: str) -> bool:
    """Whether a pair's codes are cut on their way to what computes from them."""
    readers = [n for n in proto.graph.node if tensor in n.input]
    if any(n.op_type in CUTS and n.input[0] == tensor for n in readers):
        return True
    passed = [n for n in readers if n.op_type in _MOVES or n.op_type == "DequantizeLinear"]
    return any(_is_cut(proto, n.output[0]) for n in passed)


def best_sqnr(values: np.ndarray) -> float:
    """By the best of many scales."""
    top = float(np.abs(values).max(initial=0.0)) / 127
    if not np.isfinite(top):
        return np.inf
    return max((_sqnr(values, top * f) for f in np.geomspace(0.02, 1.0, 24)), default=np.inf)


def _sqnr(values: np.ndarray, scale: float) -> float:
    signal = float((values**2).sum())
    if signal == 0 or scale < 1e-30:
        return np.inf
    rounded = np.clip(np.rint(values / scale), -128, 127) * scale
    noise = float(((values - rounded) ** 2).sum())
    return np.inf if noise == 0 else 10 * float(np.log10(signal / noise))
