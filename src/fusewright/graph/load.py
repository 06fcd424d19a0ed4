"""Reading an ONNX file: what it is, whether it is whole, and what in it onnxruntime cannot run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
from google.protobuf.message import DecodeError

from fusewright.errors import ModelError
from fusewright.graph.external import check_external, external_files, is_external, load_external
from fusewright.graph.intact import (
    check_functions,
    check_graphs,
    check_tensors,
    inner_tensors,
    mend_texts,
    stored_tensors,
)
from fusewright.graph.light import is_heavy
from fusewright.graph.model import Interface
from fusewright.graph.session import TensorSpec, first_line
from fusewright.graph.sparse import make_dense

OPSETS = range(7, 25)
# Domains whose operators onnxruntime brings along; everything else is a custom op.
RUNTIME_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.training"}
)
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Source:
    """An ONNX file as found, before anything is done to it.

    Attributes:
        proto: the file's structure; its weights are named and typed, not held.
        names: for each node its name, or its first output where it has none.
        ops: for each node its operator type.
        producers: tensor name → name of the node that writes it.
        custom: operators that onnxruntime does not have, as `domain::op`.
        on_disk: whether `proto` is what the file holds; not so where Q/DQ pairs were taken out,
            sparse tensors made dense, or repeated node names made unique.
        holds_weights: whether `proto` has the values of its weights after all.
        was_half: whether its FP16 and BF16 have become float32.
        notes: what the user should know of how it was read.
    """

    path: Path
    proto: onnx.ModelProto
    opset: int
    names: tuple[str, ...]
    ops: tuple[str, ...]
    producers: dict[str, str]
    custom: tuple[str, ...]
    on_disk: bool = True
    holds_weights: bool = False
    was_half: bool = False
    notes: tuple[str, ...] = ()

    @property
    def interface(self) -> Interface:
        """Inputs and outputs; an initializer that is listed as an input is not one."""
        stored = {t.name for t in self.proto.graph.initializer}
        return Interface(
            tuple(_spec(v) for v in self.proto.graph.input if v.name not in stored),
            tuple(_spec(v) for v in self.proto.graph.output),
        )


def read_source(path: str | Path) -> Source:
    """Reads and checks an ONNX file.

    Raises:
        ModelError: no such file, not ONNX, truncated or damaged, external data missing, too short
            or outside the folder, or an operator set outside 7 to 24.
    """
    path = Path(path)
    whole = _parse(path)
    mended = mend_texts(whole, path)
    mended |= make_dense(whole, path)
    check_tensors(whole.graph.initializer, path)
    proto = _structure(whole)
    del whole
    opset = _opset(proto, path)
    _check(proto, path)
    renamed = _rename(proto)
    names = tuple(n.name or (n.output[0] if n.output else n.op_type) for n in proto.graph.node)
    producers = {
        t: name for n, name in zip(proto.graph.node, names, strict=True) for t in n.output if t
    }
    ops = tuple(node.op_type for node in proto.graph.node)
    custom = _custom_ops(proto, opset)
    return Source(
        path, proto, opset, names, ops, producers, custom, on_disk=not (mended or renamed)
    )


def require_tensors(source: Source) -> None:
    """Refuses inputs that no sample can be: sequences, maps and optional ones.

    Raises:
        ModelError: with the input.
    """
    for value in source.proto.graph.input:
        kind = value.type.WhichOneof("value") or "tensor_type"
        if kind != "tensor_type":
            raise ModelError(
                f"{source.path}: input '{value.name}' is of type {kind.removesuffix('_type')}:"
                " samples are tensors"
            )


def load_weights(source: Source) -> onnx.ModelProto:
    """A copy of the model of its own, with every weight in it."""
    if source.holds_weights:
        copy = onnx.ModelProto()
        copy.CopyFrom(source.proto)
        return copy
    proto = _parse(source.path)
    load_external(stored_tensors(proto), source.path)
    mend_texts(proto, source.path)
    make_dense(proto, source.path)
    _rename(proto)
    return proto


def inline_functions(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Replaces the calls of model-local functions by their bodies.

    Raises:
        ModelError: a function that calls itself, or one the inliner cannot handle.
    """
    if not proto.functions:
        return proto
    try:
        return onnx.inliner.inline_local_functions(proto)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path}: its local functions cannot be inlined: {first_line(error)}"
        ) from error


def model_files(path: Path, proto: onnx.ModelProto) -> tuple[Path, ...]:
    """The file and those that hold its external data, in name order."""
    return (path, *external_files(stored_tensors(proto), path))


def fingerprint(path: Path, proto: onnx.ModelProto) -> str:
    """SHA-256 over the file and the files that hold its external data, in name order."""
    digest = hashlib.sha256()
    for file in model_files(path, proto):
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        there = "is a folder" if path.is_dir() else "is no plain file"
        raise ModelError(f"{path}: {there if path.exists() else 'no such file'}")
    if "\ufffd" in str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace"):
        raise ModelError(
            f"{path}: the name is not text in this locale, and onnxruntime opens no such file:"
            " rename it, or set a locale of UTF-8"
        )
    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX file, or a truncated one") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if not proto.ir_version or not proto.graph.output:
        raise ModelError(f"{path}: not an ONNX file, or a truncated one (no graph with outputs)")
    if not proto.opset_import:
        raise ModelError(
            f"{path}: imports no operator set (`opset_import` is empty), so its operators have no"
            " version: export it again"
        )
    return proto


def _structure(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the values of large weights, so that the file's own can be let go."""
    copy = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            _copy_field(copy, field.name, value)
    for field, value in proto.graph.ListFields():
        if field.name != "initializer":
            _copy_field(copy.graph, field.name, value)
    for tensor in proto.graph.initializer:
        if is_heavy(tensor):
            known = {"name": tensor.name, "data_type": tensor.data_type, "dims": tensor.dims}
            if is_external(tensor):
                known |= {
                    "data_location": tensor.data_location,
                    "external_data": tensor.external_data,
                }
            copy.graph.initializer.add(**known)
        else:
            copy.graph.initializer.append(tensor)
    return copy


def _copy_field(message: Any, name: str, value: Any) -> None:
    if isinstance(value, (str, bytes, int, float)):
        setattr(message, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(message, name).CopyFrom(value)
    else:
        getattr(message, name).extend(value)


def _check(proto: onnx.ModelProto, path: Path) -> None:
    """What a file must be for every road that it may take from here."""
    inner = list(inner_tensors(proto))
    check_tensors(inner, path)
    check_external((*proto.graph.initializer, *inner), path)
    check_graphs(proto, path)
    check_functions(proto, path, with_inner)


def _opset(proto: onnx.ModelProto, path: Path) -> int:
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            if entry.version not in OPSETS:
                raise ModelError(
                    f"{path}: opset {entry.version}; Fusewright reads {OPSETS[0]} to {OPSETS[-1]}"
                )
            return int(entry.version)
    raise ModelError(f"{path}: imports no standard operator set")


def _custom_ops(proto: onnx.ModelProto, opset: int) -> tuple[str, ...]:
    local = {(f.domain, f.name) for f in proto.functions}
    found = set()
    inside = (node for function in proto.functions for node in function.node)
    for node in with_inner((*proto.graph.node, *inside)):
        if (node.domain, node.op_type) in local:
            continue
        standard = node.domain in ("", "ai.onnx")
        unknown = standard and not onnx.defs.has(node.op_type, max_inclusive_version=opset)
        if unknown or node.domain not in RUNTIME_DOMAINS:
            found.add(f"{node.domain or 'ai.onnx'}::{node.op_type}")
    return tuple(sorted(found))


def _rename(proto: onnx.ModelProto) -> bool:
    """Gives what has two names, or shares one, its own; says whether there was any."""
    spelled = _rename_standard_domain(proto)
    return _rename_repeated(proto.graph) or spelled


def _rename_standard_domain(proto: onnx.ModelProto) -> bool:
    """Spells the standard domain as "", in place: onnx looks for imports by the spelling."""
    found: list[Any] = [*proto.opset_import, *with_inner(proto.graph.node)]
    for function in proto.functions:
        found += [*function.opset_import, *with_inner(function.node)]
    spelled = [one for one in found if one.domain == "ai.onnx"]
    for one in spelled:
        one.domain = ""
    return bool(spelled)


def with_inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, each with those of its subgraphs (If, Loop, Scan) behind it."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from with_inner(attribute.g.node)
            for graph in attribute.graphs:
                yield from with_inner(graph.node)


def _rename_repeated(graph: onnx.GraphProto) -> bool:
    """Numbers node names that were used before, in place: onnxruntime refuses a file with two."""
    taken = {node.name for node in graph.node}
    times: dict[str, int] = {}
    renamed = False
    for node in graph.node:
        name, number = node.name, times.get(node.name, 0) + 1
        if name and number > 1:
            while f"{name}_{number}" in taken:
                number += 1
            node.name = f"{name}_{number}"
            taken.add(node.name)
            renamed = True
        times[name] = number
    return renamed


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = np.dtype(object)
    if kind.elem_type in onnx.helper.get_all_tensor_dtypes():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if not kind.HasField("shape"):
        return TensorSpec(value.name, dtype, None)
    dims = tuple(
        d.dim_param or None if not d.HasField("dim_value") else _static(d.dim_value)
        for d in kind.shape.dim
    )
    return TensorSpec(value.name, dtype, dims)


def _static(dim: int) -> int | None:
    # paddle2onnx and Caffe2's converter write -1 where the size is unknown.
    return dim if dim >= 0 else None
