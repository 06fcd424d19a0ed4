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


class RangeCheck:
    """A rounding twin that says of each half tensor whether it is finite, beside its own outputs.

    Attributes:
        model: the twin with the checks.
        outputs: the names of the checks: 0 where a tensor is finite, else NaN.
    """

    def __init__(self, twin: onnx.ModelProto) -> None:
        """`twin` comes from `rounding_twin`; it is not changed."""
        self._twin, self._names = twin, half_tensors(twin)
        self.model, self.outputs = _with_checks(twin, self._names)

    def overflows(
        self, seen: Sequence[Sequence[np.ndarray]], feeds: Sequence[Feed], folder: Path | None
    ) -> tuple[str, ...]:
        """The tensors that rounding makes infinite or NaN.

        A mask of −∞ is infinite without rounding too, and none of them. In a file of calls the
        tensors inside them go by the names that inlining gives them.

        Args:
            seen: the checks, of each feed, by the order of `outputs`.
            feeds: run again, without rounding, where something was not finite.
            folder: where the weights lie that the model refers to.

        Raises:
            ModelError: onnxruntime cannot load the model without rounding.
            DataError: a sample does not fit.
        """
        suspects = _infinite(self._names, seen)
        if not suspects:
            return ()
        plain = onnx.ModelProto()
        plain.CopyFrom(self._twin)
        for node in plain.graph.node:
            if is_rounding(node):
                node.op_type = "Identity"
                del node.attribute[:]
        anyway = set(_infinite(suspects, _run(*_with_checks(plain, suspects), feeds, folder)))
        return tuple(name for name in suspects if name not in anyway)


def overflows(
    twin: onnx.ModelProto, feeds: Iterable[Feed], folder: Path | None = None
) -> tuple[str, ...]:
    """A `RangeCheck` of a twin, run for nothing else."""
    feeds, check = list(feeds), RangeCheck(twin)
    return check.overflows(_run(check.model, check.outputs, feeds, folder), feeds, folder)


def _run(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed], folder: Path | None
) -> list[list[np.ndarray]]:
    with tempfile.TemporaryDirectory(prefix="ranges-") as own:
        path = (folder or Path(own)) / f"{Path(own).name}.onnx"
        save(model, path)
        session = open_folded(path)
        path.unlink()
    return [run_session(session, feed, names) for feed in feeds]


def _infinite(names: Sequence[str], seen: Sequence[Sequence[np.ndarray]]) -> list[str]:
    """Those of `names` whose check is not 0 on any feed."""
    found = np.zeros(len(names), bool)
    for checks in seen:
        found |= np.array([not np.isfinite(value).all() for value in checks], bool)
    return [name for name, bad in zip(names, found, strict=True) if bad]


def _with_checks(model: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, list[str]]:
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    graph, results = checked.graph, []
    for i, name in enumerate(names):
        nothing, result = f"fusewright_check_{i}", f"fusewright_check_sum_{i}"
        graph.node.append(helper.make_node("Sub", [name, name], [nothing], nothing))
        graph.node.append(helper.make_node("ReduceSum", [nothing], [result], result, keepdims=0))
        value = helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, [])
        graph.output.append(value)
        results.append(result)
    return checked, results
