"""Cleaning: constants folded, no-ops gone, by onnxruntime's offline optimizer.

Its basic level runs in C++ and is the fastest folder there is. The rewrites that fuse are left out
by name: fusing is what the later stages do, where each step is recognised and proven.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Set
from pathlib import Path

import onnx
import onnxruntime as ort

from fusewright.errors import ModelError
from fusewright.graph.half import remove_inserted_casts, with_casts, written_out
from fusewright.graph.light import is_heavy, stored_bytes, with_weights
from fusewright.graph.load import with_inner
from fusewright.graph.session import open_session, session_options
from fusewright.graph.temporary import blame_full_disk, temporary_files
from fusewright.graph.workspace import Workspace

_IN_ONE_FILE = 1 << 30
_INLINED = "_inlfunc_"
# What its MatMulAddFusion stores beside each Gemm that it makes, and its ReshapeFusion behind the
# name of the Reshape, whatever there is of that name.
_FUSED = ("gemm_input_shape", "gemm_output_shape")
_FUSED_SHAPE = "_new_shape"
# Everything at the basic level that merges operators, moves transposes, or touches Q/DQ.
LEFT_OUT = (
    "ConstantSharing",
    "ConvAddFusion",
    "ConvBNFusion",
    "ConvMulFusion",
    "DivMulFusion",
    "FuseReluClip",
    "GatherSliceToSplitFusion",
    "GatherToSliceFusion",
    "GatherToSplitFusion",
    "GeluFusionL1",
    "GemmSumFusion",
    "GemmTransposeFusion",
    "LayerNormFusionL1",
    "MatMulAddFusion",
    "MatMul_BatchNormalization_Fusion",
    "NotWhereFusion",
    "Pad_Fusion",
    "TransposeOptimizer",
)


def open_folded(model: Path) -> ort.InferenceSession:
    """Opens a quantized model with the Q/DQ pairs of its weights computed beforehand.

    Everything else stays as it is written, the pairs of activations among it.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # Otherwise it keeps stored INT8 weights in front of their DequantizeLinear.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return open_session(model, options=options, left_out=LEFT_OUT)


def clean(source: onnx.ModelProto | Path, workspace: Workspace | None = None) -> onnx.ModelProto:
    """Runs the optimizer over a model (a proto, or a path) and returns what it wrote.

    With a workspace the weights stay there, and the proto refers to them.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """
    with contextlib.closing(Workspace()) as own:
        if isinstance(source, onnx.ModelProto):
            source = _written(source, own.folder)
        return _cleaned(source, "clean", workspace or own, keeps=workspace is not None)


def clean_again(
    light: onnx.ModelProto, proto: onnx.ModelProto, workspace: Workspace | None = None
) -> onnx.ModelProto:
    """Runs the optimizer over what a rewrite has uncovered.

    Only the weights that something constant is computed from are given to it: the others would be
    read and written for nothing.

    Args:
        light: a copy of a cleaned model without its weights, rewritten since; it is changed.
        proto: the model that has the weights.
        workspace: where they lie, if `proto` only refers to them.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """
    heavy = {tensor.name for tensor in proto.graph.initializer if is_heavy(tensor)}
    needed = _read_by_constant_nodes(light, heavy)
    with contextlib.closing(Workspace()) as own:
        source = _written(with_weights(light, proto, needed), (workspace or own).folder)
        cleaned = _cleaned(source, "again", workspace or own, keeps=workspace is not None)
        source.unlink()
    return with_weights(cleaned, proto, heavy - needed)


def _read_by_constant_nodes(light: onnx.ModelProto, heavy: Set[str]) -> Set[str]:
    """The weights that nodes read which depend on nothing but weights."""
    constant = {"", *heavy, *(tensor.name for tensor in light.graph.initializer)}
    found: set[str] = set()
    for node in light.graph.node:
        if node.input and constant.issuperset(node.input):
            constant.update(node.output)
            found.update(node.input)
    return found & heavy


def _cleaned(source: Path, name: str, workspace: Workspace, keeps: bool) -> onnx.ModelProto:
    """The optimized model, written under `name`; `keeps`: its weights stay in the workspace."""
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # It is opened for what it writes, and never run.
    options.add_session_config_entry("session.disable_prepacking", "1")
    written = workspace.folder / f"{name}.onnx"
    options.optimized_model_filepath = str(written)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{name}.weights"
    )
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
    )
    try:
        open_session(source, options=options, left_out=LEFT_OUT)
    except ModelError as error:
        blame_full_disk(workspace.folder, error)
        raise
    proto = onnx.load(str(written), load_external_data=not keeps)
    remove_inserted_casts(proto, workspace.folder)
    rename_taken(proto.graph)
    _cut_activations(proto.graph)
    used = {n.domain for n in with_inner(proto.graph.node)} | {""}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return proto


def rename_taken(graph: onnx.GraphProto) -> None:
    """Gives other names to what onnxruntime takes the same names for again, in place.

    Those are of what it wrote out of operators it has no kernel for: where one is left written out
    beside one that was put back (GroupNormalization), they would clash. And of the shapes in a
    file that it fused MatMul and Add in: where they are MatMul and Add again, it does not load.
    """
    written = {name for n in with_inner(graph.node) for name in n.output}
    stored = {tensor.name for tensor in graph.initializer} - {v.name for v in graph.output}
    taken = {n for n in stored if n.startswith(_FUSED) or n.endswith(_FUSED_SHAPE)}
    fused = {name: f"stored_{name}_" for name in taken}
    if not fused and not any(name.startswith(_INLINED) for name in written):
        return

    def rename(name: str) -> str:
        other = name.replace(_INLINED, "inlined_", 1) if name.startswith(_INLINED) else name
        return fused.get(name, other)

    for inner in _with_subgraphs(graph):
        for node in inner.node:
            node.input[:] = map(rename, node.input)
            node.output[:] = map(rename, node.output)
        for tensor in inner.initializer:
            tensor.name = rename(tensor.name)
        for value in (*inner.value_info, *inner.output):
            value.name = rename(value.name)


def _cut_activations(graph: onnx.GraphProto) -> None:
    """Leaves an RNN one activation per direction, in place.

    onnxruntime writes the schema's default of two into each, which TensorRT refuses.
    """
    for node in with_inner(graph.node):
        if node.op_type == "RNN":
            given = {attribute.name: attribute for attribute in node.attribute}
            both = "direction" in given and given["direction"].s == b"bidirectional"
            if "activations" in given:
                del given["activations"].strings[2 if both else 1 :]


def _with_subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _with_subgraphs(inner)


def _written(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "source.onnx"
    proto = with_casts(proto) if written_out(proto) else proto
    with temporary_files():
        onnx.save(proto, str(path), save_as_external_data=stored_bytes(proto) > _IN_ONE_FILE)
    return path
