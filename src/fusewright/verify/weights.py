"""What is computed from a stored weight alone, computed once: its Q/DQ pair, Casts around it.

onnxruntime would do the same whenever it opens the model, in three times the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusewright.graph.light import byte_size
from fusewright.graph.temporary import temporary_files
from fusewright.verify.side import reads_of

# Smaller ones are left to onnxruntime.
_SMALL = 1 << 14
_AT_ONCE = 2
_SCALES = 1 << 20
_CAST, _QUANTIZE, _DEQUANTIZE = "Cast", "QuantizeLinear", "DequantizeLinear"
_FLOATS: dict[int, type] = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
_STORED = (*_FLOATS, TensorProto.INT8)


@dataclass(frozen=True)
class _Chain:
    """A stored tensor, and the nodes that one by one compute something from it alone."""

    tensor: TensorProto
    nodes: tuple[onnx.NodeProto, ...]


class _Stored:
    """Small stored tensors by name, scales and zero-points; as they are, or behind a Cast."""

    def __init__(self, graph: onnx.GraphProto, folder: Path) -> None:
        self._folder = str(folder)
        self._tensors = {t.name: t for t in graph.initializer}
        self._casts = {
            node.output[0]: node
            for node in graph.node
            if node.op_type == _CAST and node.input[0] in self._tensors
        }
        self._found: dict[str, np.ndarray | None] = {}

    def find(self, name: str) -> np.ndarray | None:
        """The values, where they are stored and few."""
        if name not in self._found:
            self._found[name] = self._read(name)
        return self._found[name]

    def _read(self, name: str) -> np.ndarray | None:
        cast = self._casts.get(name)
        tensor = self._tensors.get(name if cast is None else cast.input[0])
        if tensor is None or byte_size(tensor) > _SCALES:
            return None
        values: np.ndarray = numpy_helper.to_array(tensor, self._folder)
        if cast is None:
            return values
        kind = _FLOATS.get(number(cast, "to", 0))
        return None if kind is None else values.astype(kind)


def with_computed_weights(model: onnx.ModelProto, folder: Path, file: Path) -> onnx.ModelProto:
    """A copy whose INT8-rounded weights are stored as the floats that they stand for.

    Args:
        model: its weights may lie in `folder`; it is not changed.
        folder: where it will be opened.
        file: in that folder; what is computed is written there.
    """
    return _replaced(model, folder, file, _up_to_floats)


def with_quantized_weights(model: onnx.ModelProto, folder: Path, file: Path) -> onnx.ModelProto:
    """A copy whose weights are stored in INT8, in front of their DequantizeLinear.

    Each of onnxruntime's optimization levels begins by making the same of the model.

    Args:
        model: as of `with_computed_weights`.
        folder: likewise.
        file: likewise.
    """
    return _replaced(model, folder, file, _up_to_codes)


def _replaced(
    model: onnx.ModelProto,
    folder: Path,
    file: Path,
    cut: Callable[[list[onnx.NodeProto]], list[onnx.NodeProto]],
) -> onnx.ModelProto:
    stored = _Stored(model.graph, folder)
    chains = list(_chains(model.graph, stored, cut))
    if not chains:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    done = {id(node) for chain in chains for node in chain.nodes}
    kept = [node for node in model.graph.node if id(node) not in done]
    read = {name for node in kept for name in reads_of(node)} | {v.name for v in copy.graph.output}
    gone = {chain.tensor.name for chain in chains} - read
    left = [tensor for tensor in model.graph.initializer if tensor.name not in gone]
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(kept)
    copy.graph.initializer.extend(left)
    with (
        temporary_files(),
        file.open("wb") as sink,
        ThreadPoolExecutor(max_workers=_AT_ONCE) as pool,
    ):
        for start in range(0, len(chains), _AT_ONCE):
            part = chains[start : start + _AT_ONCE]
            for chain, array in zip(
                part, pool.map(lambda chain: _computed(chain, stored, folder), part), strict=True
            ):
                name = chain.nodes[-1].output[0]
                copy.graph.initializer.append(external(name, array, file.name, sink.tell()))
                sink.write(array.data)
    return copy


def _up_to_floats(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The longest chain with a pair in INT8, or its second half."""
    while nodes and nodes[-1].op_type == _QUANTIZE:
        nodes = nodes[:-1]
    return nodes if any(node.op_type == _DEQUANTIZE for node in nodes) else []


def _up_to_codes(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The chain as far as the weight is INT8."""
    kinds = [node.op_type for node in nodes]
    return nodes[: kinds.index(_QUANTIZE) + 1] if _QUANTIZE in kinds else []


def _chains(
    graph: onnx.GraphProto,
    stored: _Stored,
    cut: Callable[[list[onnx.NodeProto]], list[onnx.NodeProto]],
) -> Iterator[_Chain]:
    """What is left of each chain by `cut`; a value in the middle is read by nothing else."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in reads_of(node):
            readers.setdefault(name, []).append(node)
    outputs = {v.name for v in graph.output}
    for tensor in graph.initializer:
        if tensor.data_type not in _STORED or byte_size(tensor) < _SMALL:
            continue
        # One may be a scale too, of as many channels as a small weight has elements.
        for first in (n for n in readers.get(tensor.name, ()) if n.input[0] == tensor.name):
            nodes = cut(_steps_from(first, readers, outputs, stored))
            if nodes:
                yield _Chain(tensor, tuple(nodes))


def _steps_from(
    first: onnx.NodeProto,
    readers: dict[str, list[onnx.NodeProto]],
    outputs: set[str],
    stored: _Stored,
) -> list[onnx.NodeProto]:
    nodes: list[onnx.NodeProto] = []
    following = [first]
    while len(following) == 1 and _is_step(following[0], stored):
        (node,) = following
        if nodes and node.input[0] != nodes[-1].output[0]:
            break
        nodes.append(node)
        following = [] if node.output[0] in outputs else readers.get(node.output[0], [])
    return nodes


def _is_step(node: onnx.NodeProto, stored: _Stored) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == _CAST:
        return number(node, "to", 0) in _FLOATS
    if node.op_type not in (_QUANTIZE, _DEQUANTIZE) or len(node.input) < 3:
        return False
    scale, zero = (stored.find(name) for name in node.input[1:3])
    return (
        scale is not None
        and scale.dtype in _FLOATS.values()
        and zero is not None
        and zero.dtype == np.int8
        and not number(node, "block_size", 0)
        and not zero.any()
    )


def _computed(chain: _Chain, stored: _Stored, folder: Path) -> np.ndarray:
    values: np.ndarray = numpy_helper.to_array(chain.tensor, str(folder))
    for node in chain.nodes:
        values = _STEPS[node.op_type](values, node, stored)
    if chain.nodes[-1].op_type == _QUANTIZE:
        values = values.astype(np.int8)
    return np.ascontiguousarray(values)


def _cast(values: np.ndarray, node: onnx.NodeProto, _: _Stored) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(_FLOATS[number(node, "to", 0)])


def _quantize(values: np.ndarray, node: onnx.NodeProto, stored: _Stored) -> np.ndarray:
    steps = values.astype(np.float32) / _scale(values, node, stored).astype(np.float32)
    np.rint(steps, out=steps)
    np.clip(steps, -128, 127, out=steps)
    return steps


def _dequantize(values: np.ndarray, node: onnx.NodeProto, stored: _Stored) -> np.ndarray:
    scale = _scale(values, node, stored)
    result: np.ndarray = (values * scale.astype(np.float32)).astype(scale.dtype, copy=False)
    return result


def _scale(values: np.ndarray, node: onnx.NodeProto, stored: _Stored) -> np.ndarray:
    scale = stored.find(node.input[1])
    assert scale is not None
    if scale.ndim == 1:
        shape = [1] * values.ndim
        shape[number(node, "axis", 1)] = scale.size
        scale = scale.reshape(shape)
    return scale


_STEPS: dict[str, Callable[..., np.ndarray]] = {
    _CAST: _cast,
    _QUANTIZE: _quantize,
    _DEQUANTIZE: _dequantize,
}


def number(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def external(name: str, array: np.ndarray, file: str, offset: int) -> TensorProto:
    """A stored tensor whose values lie in a file beside the model."""
    tensor = TensorProto(
        name=name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    place = {"location": file, "offset": offset, "length": array.nbytes}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
