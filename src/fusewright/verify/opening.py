"""A model that is to be run for a comparison: a file, or a proto whose weights lie in a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
import onnxruntime as ort

from fusewright.calibrate.exposing import serialized, structure
from fusewright.graph.clean import open_folded
from fusewright.graph.light import stored_bytes
from fusewright.graph.session import naming, open_session, session_options
from fusewright.graph.temporary import temporary_files
from fusewright.verify.weights import with_computed_weights

_IN_ONE_FILE = 1 << 30


@dataclass(frozen=True)
class Openable:
    """What sessions are opened of.

    Attributes:
        model: the model, or its file.
        folder: where the weights lie that a proto refers to.
        is_final: what depends on stored tensors alone is computed once, not in every run.
    """

    model: onnx.ModelProto | Path
    folder: Path | None = None
    is_final: bool = False

    @cached_property
    def structure(self) -> onnx.ModelProto:
        """The model; of a file, without its stored tensors."""
        if isinstance(self.model, Path):
            with self.named():
                return structure(serialized(self.model))
        return self.model

    @cached_property
    def _loaded(self) -> onnx.ModelProto:
        if isinstance(self.model, Path):
            return onnx.load(str(self.model), load_external_data=False)
        return self.model

    def open(self) -> ort.InferenceSession:
        """A session over the model as it is, optimizations off.

        Raises:
            ModelError: onnxruntime cannot load it.
        """
        if isinstance(self.model, Path):
            with self.named():
                return open_session(self.model)
        return self._open(self.model)

    def open_with(self, names: Sequence[str]) -> ort.InferenceSession:
        """A session that gives these tensors too.

        Raises:
            ModelError: onnxruntime cannot load it.
        """
        if {v.name for v in self.structure.graph.output}.issuperset(names):
            return self.open()
        return self.open_edited(copied(self._loaded, names))

    def named(self) -> AbstractContextManager[None]:
        """A context in which errors name the file, where there is one."""
        return naming(self.model) if isinstance(self.model, Path) else nullcontext()

    def loaded(self) -> onnx.ModelProto:
        """The model with what its file itself stores; not to be changed."""
        return self._loaded

    def open_edited(self, model: onnx.ModelProto) -> ort.InferenceSession:
        """A session over a model that was made of this one, and refers to its weights.

        Raises:
            ModelError: onnxruntime cannot load it.
        """
        with self.named():
            return self._open(model)

    def _open(self, model: onnx.ModelProto) -> ort.InferenceSession:
        # Through a file: from bytes, the weights would be in memory twice more while it loads.
        # Beside the weights it refers to: onnxruntime maps them, and copies nothing.
        options = None
        if isinstance(self.model, Path):
            options = session_options(optimize=False)
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path",
                str(self.model.parent.resolve()),
            )
        with tempfile.TemporaryDirectory(prefix="verify-") as own:
            path = (self.folder or Path(own)) / f"{Path(own).name}.onnx"
            weights = path.with_suffix(".weights")
            try:
                if self.is_final:
                    model = with_computed_weights(model, path.parent, weights)
                with temporary_files():
                    # What was one file fits into one again.
                    in_one = isinstance(self.model, Path) or stored_bytes(model) < _IN_ONE_FILE
                    _write(model, path, in_one)
                return open_folded(path) if self.is_final else open_session(path, options=options)
            finally:
                path.unlink(missing_ok=True)
                weights.unlink(missing_ok=True)


def copied(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy with these tensors as outputs too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return with_outputs(copy, names)


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Makes tensors outputs, in place."""
    known = {v.name for v in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    return model


def _write(model: onnx.ModelProto, path: Path, in_one: bool) -> None:
    if in_one:
        path.write_bytes(model.SerializeToString())
    else:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.stem}.all")
