"""A folder for one job: the weights lie in it once, and every model on the way refers to them."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.external_data_helper import load_external_data_for_model
from onnx_graphsurgeon.ir.tensor import LazyValues

from fusewright.graph.external import is_external
from fusewright.graph.temporary import PREFIX, temporary_files

_EDITED = "edited.weights"
_SMALL = 1024


class Workspace:
    """A temporary folder that goes when nothing refers to it any more, or the process ends."""

    def __init__(self) -> None:
        """Makes the folder."""
        with temporary_files():
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._end = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def put(self, tensor: gs.Constant, values: np.ndarray) -> None:
        """Changes what a stored tensor holds; where it is large, the values lie in this folder."""
        if values.nbytes <= _SMALL:
            tensor.values = values
            return
        proto = onnx.TensorProto(
            name=tensor.name,
            dims=values.shape,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(values.dtype),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        with temporary_files(), (self.folder / _EDITED).open("ab") as file:
            place = {"location": _EDITED, "offset": file.tell(), "length": values.nbytes}
            file.write(np.ascontiguousarray(values).view(np.uint8).data)  # bfloat16 is no buffer
        for key, value in place.items():
            proto.external_data.add(key=key, value=str(value))
        tensor.values = StoredValues(proto, self)

    def close(self) -> None:
        """Removes the folder now."""
        self._end()


class StoredValues(LazyValues):  # type: ignore[misc]
    """Values of a weight that lies in a workspace; graphsurgeon exports the reference as it is."""

    def __init__(self, tensor: onnx.TensorProto, workspace: Workspace) -> None:
        """Keeps the workspace alive."""
        super().__init__(tensor)
        self.workspace = workspace

    def load(self) -> np.ndarray:
        """Reads the array; nothing is kept."""
        return np.array(onnx.numpy_helper.to_array(self.tensor, str(self.workspace.folder)))


def refer_to(graph: gs.Graph, workspace: Workspace) -> None:
    """Lets the constants of an imported graph and its bodies read what lies in the workspace."""
    scopes = (graph, *graph.subgraphs(recursive=True))
    for tensor in (tensor for scope in scopes for tensor in scope.tensors().values()):
        held = tensor._values if isinstance(tensor, gs.Constant) else None
        if isinstance(held, LazyValues) and is_external(held.tensor):
            tensor._values = StoredValues(held.tensor, workspace)
            # A changed value is stored in the model itself.
            tensor.data_location = None


def store_large(graph: gs.Graph, workspace: Workspace) -> None:
    """Moves what rewrites keep in memory to the workspace, where every later model finds it."""
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant) and isinstance(tensor._values, np.ndarray):
            workspace.put(tensor, tensor._values)


def embed(proto: onnx.ModelProto, workspace: Workspace) -> onnx.ModelProto:
    """Puts the weights of the workspace into the model, in place."""
    load_external_data_for_model(proto, str(workspace.folder))
    return proto
