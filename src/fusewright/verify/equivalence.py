"""How far two models' outputs are apart on the same samples."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from fusewright.errors import DataError, ModelError
from fusewright.graph.clean import open_folded
from fusewright.graph.light import stored_bytes
from fusewright.graph.session import Feed, naming, open_session, run_session
from fusewright.verify.distance import Comparison, Distance, compare_outputs
from fusewright.verify.outputs import with_float_outputs
from fusewright.verify.weights import with_computed_weights

_IN_ONE_FILE = 1 << 30


class Reference:
    """What the original computes on a few samples; rewrites are compared with it."""

    def __init__(
        self, model: onnx.ModelProto | Path, feeds: Sequence[Feed], folder: Path | None = None
    ) -> None:
        """Runs `model`, optimizations off, once.

        `folder` holds the weights that models refer to.

        Raises:
            DataError: there is no sample.
        """
        if not feeds:
            raise DataError("no sample to verify with")
        self.feeds, self.folder = list(feeds), folder
        original = model if isinstance(model, Path) else with_float_outputs(model)
        self._in_float = original is not model
        session = _open(original, folder)
        self.names = [output.name for output in session.get_outputs()]
        self.outputs = [run_session(session, feed, self.names) for feed in self.feeds]

    def compare(self, model: onnx.ModelProto | Path, is_final: bool = False) -> Comparison:
        """Runs a rewritten model on the same samples.

        Args:
            model: with the interface of the original.
            is_final: it is meant to differ, and what depends on stored tensors alone is computed
                once, not in every run: the weights behind Q/DQ pairs.

        Raises:
            ModelError: onnxruntime cannot load it, or it fails on samples that the original takes.
        """
        return self.compare_and_fetch(model, (), is_final)[0]

    def compare_and_fetch(
        self, model: onnx.ModelProto | Path, also: Sequence[str], is_final: bool = True
    ) -> tuple[Comparison, list[list[np.ndarray]]]:
        """`compare`, and the values of further outputs on each sample, from the same runs.

        Raises:
            ModelError: as `compare`.
        """
        names, count = [*self.names, *also], len(self.names)
        try:
            if self._in_float and not isinstance(model, Path):
                model = with_float_outputs(model)
            session = _open(model, self.folder, is_final)
            outputs = [run_session(session, feed, names) for feed in self.feeds]
        except DataError as error:
            raise ModelError(
                f"the original runs on the samples, this model not: {error}"
            ) from error
        comparison = compare_outputs(self.names, self.outputs, [o[:count] for o in outputs])
        return comparison, [o[count:] for o in outputs]


def compare_models(
    first: onnx.ModelProto | Path,
    second: onnx.ModelProto | Path,
    feeds: Iterable[Feed],
    folder: Path | None = None,
) -> tuple[Comparison, int]:
    """Runs two models on the same samples, one sample in memory; also says how many there were.

    Args:
        first: the reference.
        second: the model to judge.
        feeds: the samples.
        folder: where weights lie that `second` refers to, where it is no path.

    Raises:
        ModelError: their outputs differ in name, or one cannot be loaded.
        DataError: there are no samples, or a model fails on one.
    """
    one, other = _open(first), _open(second, folder)
    names = [output.name for output in one.get_outputs()]
    if names != [output.name for output in other.get_outputs()]:
        raise ModelError("the two models have different outputs")
    distances, count = [Distance(name) for name in names], 0
    for feed in feeds:
        count += 1
        for distance, a, b in zip(
            distances, run_session(one, feed), run_session(other, feed), strict=True
        ):
            distance.add(a, b)
    if not count:
        raise DataError("no sample to compare with")
    return Comparison(tuple(distance.result() for distance in distances)), count


def _open(
    model: onnx.ModelProto | Path, folder: Path | None = None, is_final: bool = False
) -> ort.InferenceSession:
    if isinstance(model, Path):
        with naming(model):
            return open_session(model)
    # Through a file: from bytes, the weights would be in memory twice more while it loads. Beside
    # the weights it refers to: onnxruntime maps them, and copies nothing.
    with tempfile.TemporaryDirectory(prefix="verify-") as own:
        path = (folder or Path(own)) / f"{Path(own).name}.onnx"
        weights = path.with_suffix(".weights")
        try:
            if is_final:
                model = with_computed_weights(model, path.parent, weights)
            if stored_bytes(model) < _IN_ONE_FILE:
                path.write_bytes(model.SerializeToString())
            else:
                onnx.save(model, str(path), save_as_external_data=True, location=f"{path.stem}.all")
            return open_folded(path) if is_final else open_session(path)
        finally:
            path.unlink(missing_ok=True)
            weights.unlink(missing_ok=True)
