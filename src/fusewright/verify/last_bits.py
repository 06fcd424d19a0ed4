"""How exactly a model's results are defined: what the last bit of its stored numbers does to them.

A softmax over large logits, or a sum of what nearly cancels, makes much of any rounding. An exact
rewrite that computes in another order is as far from such a model as the model is from itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from fusewright.graph.light import all_bytes
from fusewright.graph.widen import graphs_of

# A larger model would have to be in memory twice, to explain what is rare.
_MOST_BYTES = 1 << 30
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})


def with_other_last_bits(model: onnx.ModelProto | Path, folder: Path) -> onnx.ModelProto | None:
    """A copy of a model in which half of the stored numbers are the next smaller or larger one.

    Args:
        model: the model, or its file.
        folder: where the weights lie that a proto refers to.

    Returns:
        None for a model of more than 1 GiB.
    """
    if isinstance(model, Path):
        folder = model.parent
        model = onnx.load(str(model), load_external_data=False)
    if all_bytes(model) > _MOST_BYTES:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.load_external_data_for_model(copy, str(folder))
    random = np.random.default_rng(0)
    graphs = list(graphs_of(copy.graph))
    stored = [tensor for graph in graphs for tensor in graph.initializer]
    stored += [a.t for graph in graphs for node in graph.node for a in node.attribute]
    for tensor in stored:
        if tensor.data_type in _FLOATS:
            values = _nudged(numpy_helper.to_array(tensor), random)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


def _nudged(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    up = random.random(values.shape) < 0.5
    ends = np.where(up, np.inf, -np.inf).astype(values.dtype)
    # What is a whole number, infinite or none is meant to be just that: a Resize by 2.
    moves = (random.random(values.shape) < 0.5) & (values != np.rint(values)) & np.isfinite(values)
    found = np.where(moves, np.nextafter(values, ends), values)
    return np.where(np.isfinite(found), found, values).astype(values.dtype)
