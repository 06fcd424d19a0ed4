"""The range check: is every half tensor finite where its float32 counterpart is?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from fusewright.graph.clean import open_folded
from fusewright.graph.save import save
from fusewright.graph.session import Feed, run_session
from fusewright.precision.twin import half_tensors, is_rounding


def overflows(
    twin: onnx.ModelProto, feeds: Iterable[Feed], folder: Path | None = None
) -> tuple[str, ...]:
    """The tensors of a rounding twin that rounding makes infinite or NaN.

    A mask of −∞ is infinite without rounding too, and none of them. In a file of calls the tensors
    inside them go by the names that inlining gives them.

    Args:
        twin: from `rounding_twin`; it is not changed.
        feeds: samples, each run once, or twice where something is not finite.
        folder: where the weights lie that the model refers to.

    Raises:
        ModelError: onnxruntime cannot load the twin.
        DataError: a sample does not fit.
    """
    feeds = list(feeds)
    suspects = _infinite(twin, half_tensors(twin), feeds, folder)
    if not suspects:
        return ()
    plain = onnx.ModelProto()
    plain.CopyFrom(twin)
    for node in plain.graph.node:
        if is_rounding(node):
            node.op_type = "Identity"
            del node.attribute[:]
    anyway = set(_infinite(plain, suspects, feeds, folder))
    return tuple(name for name in suspects if name not in anyway)


def _infinite(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed], folder: Path | None
) -> list[str]:
    """Those of `names` that hold NaN or Inf on any feed."""
    if not names:
        return []
    checked = _with_checks(model, names)
    with tempfile.TemporaryDirectory(prefix="ranges-", dir=folder) as own:
        path = (folder or Path(own)) / "range_check.onnx"
        save(checked, path)
        session = open_folded(path)
        results = [output.name for output in session.get_outputs()]
        found = np.zeros(len(names), bool)
        for feed in feeds:
            sums = run_session(session, feed, results)
            found |= np.array([not np.isfinite(value).all() for value in sums])
        path.unlink()
    return [name for name, bad in zip(names, found, strict=True) if bad]


def _with_checks(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A model whose outputs are 0 for each finite tensor, and NaN for the others."""
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    graph = checked.graph
    del graph.output[:]
    for i, name in enumerate(names):
        nothing, result = f"fusewright_check_{i}", f"fusewright_check_sum_{i}"
        graph.node.append(helper.make_node("Sub", [name, name], [nothing], nothing))
        graph.node.append(helper.make_node("ReduceSum", [nothing], [result], result, keepdims=0))
        value = helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, [])
        graph.output.append(value)
    return checked
