"""Whether a file means something: its texts, stored tensors, graphs and functions, once on load.

onnxruntime, onnx, graphsurgeon and TensorRT each take a file by another road, and each answers a
damaged one in its own way: with an exception of any type, a crash, or not at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.helper

from fusewright.errors import ModelError
from fusewright.graph.external import is_external
from fusewright.graph.light import byte_size

MOST_NODES = 500_000
"""That local functions may unfold to; 33,000 Conv-BN-Relu triples are 99,000."""
_DEEPEST = 100
# A bomb is small: nodes for each that the file holds, where there are so many that it matters. A
# model's blocks are a function that is called a hundred times.
_TIMES, _MATTERS = 200, 20_000
# Read by people alone: an exporter on Windows wrote the paths in its stack traces in cp1252.
_FREE_TEXTS = frozenset({"doc_string", "producer_name", "producer_version", "denotation"})
_STANDARD = ("", "ai.onnx")
_ELEMENT_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
# None is said of sequences, and of tensors inside that no tool could infer.
_DECLARED = frozenset(onnx.TensorProto.DataType.values())
_ATTRIBUTE_TYPES = frozenset(onnx.AttributeProto.AttributeType.values()) - {
    onnx.AttributeProto.UNDEFINED
}
_HELD_IN = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    onnx.AttributeProto.TYPE_PROTO: "tp",
}
# Two numbers for each element.
_COMPLEX = frozenset({onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128})


def stored_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All stored tensors of a model: its initializers, and those of `inner_tensors`."""
    yield from proto.graph.initializer
    yield from inner_tensors(proto)


def inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Stored tensors beside the initializers: sparse ones, in attributes, bodies and functions."""
    for part in (proto.graph.sparse_initializer, proto.graph.node, proto.functions):
        for message in part:
            yield from _tensors_in(message)


def _tensors_in(message: Any) -> Iterator[onnx.TensorProto]:
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                if isinstance(inner, onnx.TensorProto):
                    yield inner
                else:
                    yield from _tensors_in(inner)


def mend_texts(proto: onnx.ModelProto, path: Path) -> bool:
    """Replaces what is not UTF-8 in texts that nothing computes by, in place; whether there was.

    Raises:
        ModelError: a name that is not UTF-8.
    """
    mended = False
    for message, field, text in _bad_texts(proto):
        if field.name not in _FREE_TEXTS:
            raise ModelError(
                f"{path}: {field.containing_type.name}.{field.name} {text!r} is not UTF-8: the"
                " file is damaged, or was written in another encoding"
            )
        setattr(message, field.name, text.decode("utf-8", "replace"))
        mended = True
    return mended


def _bad_texts(message: Any) -> Iterator[tuple[Any, Any, bytes]]:
    # protobuf gives a text that is not UTF-8 as bytes.
    if isinstance(message, onnx.TensorProto):
        known = onnx.TensorProto.DESCRIPTOR.fields_by_name
        fields = [(known[n], getattr(message, n)) for n in ("name", "doc_string", "external_data")]
    else:
        fields = message.ListFields()
    for field, value in fields:
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                yield from _bad_texts(inner)
        elif field.type == field.TYPE_STRING:
            for text in value if field.is_repeated else (value,):
                if type(text) is bytes:
                    yield message, field, text


def check_tensors(tensors: Iterable[onnx.TensorProto], path: Path) -> None:
    """Refuses stored tensors whose values do not fit their shape and type.

    Raises:
        ModelError: with the tensor.
    """
    for tensor in tensors:
        problem = _problem_of(tensor)
        if problem is not None:
            raise ModelError(f"{path}: stored tensor '{tensor.name}' {problem}")


def _problem_of(tensor: onnx.TensorProto) -> str | None:
    if tensor.data_type not in _ELEMENT_TYPES:
        return f"has element type {tensor.data_type}, which ONNX does not have"
    if any(dim < 0 for dim in tensor.dims):
        return f"has shape {list(tensor.dims)}"
    if is_external(tensor):
        return None
    if tensor.HasField("raw_data") and tensor.data_type != onnx.TensorProto.STRING:
        found, needed, unit = len(tensor.raw_data), byte_size(tensor), "bytes"
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        found, needed, unit = len(getattr(tensor, field)), _entries(tensor), f"entries in {field}"
    if found == needed:
        return None
    return f"has {found} {unit}, its shape {list(tensor.dims)} and type take {needed}"


def _entries(tensor: onnx.TensorProto) -> int:
    count = math.prod(tensor.dims)
    if tensor.data_type in _COMPLEX:
        return 2 * count
    packed = byte_size(tensor) < count
    return byte_size(tensor) if packed else count


def check_graphs(proto: onnx.ModelProto, path: Path) -> None:
    """Refuses nodes without outputs, tensors written twice, and reads of what nothing writes.

    So are declared types and attributes of a kind that ONNX does not have.

    Raises:
        ModelError: with the node.
    """
    stored = {tensor.name for tensor in proto.graph.initializer}
    fed = [v.name for v in proto.graph.input if v.name not in stored]
    twice = next((name for name, count in Counter(fed).items() if count > 1), None)
    if twice is not None:
        raise ModelError(f"{path}: two inputs are named '{twice}'")
    _check_scope(proto.graph, frozenset(), path)
    for function in proto.functions:
        for node in function.node:
            _check_node(node, path)


def _check_scope(graph: onnx.GraphProto, outer: frozenset[str], path: Path) -> None:
    writers: dict[str, onnx.NodeProto | None] = {value.name: None for value in graph.input}
    writers |= {tensor.name: None for tensor in graph.initializer}
    writers |= {tensor.values.name: None for tensor in graph.sparse_initializer}
    _check_declared(graph, path)
    for node in graph.node:
        _check_node(node, path)
        for name in filter(None, node.output):
            if name in writers:
                other = writers[name]
                also = "the model" if other is None else _shown(other)
                raise ModelError(f"{path}: {_shown(node)} writes '{name}', and so does {also}")
            writers[name] = node
    known = outer | writers.keys()
    for node in graph.node:
        unknown = next((name for name in node.input if name and name not in known), None)
        if unknown is not None:
            raise ModelError(f"{path}: {_shown(node)} reads '{unknown}', which nothing writes")
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else []
            for body in (*inner, *attribute.graphs):
                _check_scope(body, known, path)
    missing = next((v.name for v in graph.output if v.name not in known), None)
    if missing is not None:
        raise ModelError(f"{path}: nothing writes the output '{missing}'")


def _check_declared(graph: onnx.GraphProto, path: Path) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type.elem_type
        if kind not in _DECLARED:
            raise ModelError(
                f"{path}: '{value.name}' is declared with element type {kind}, which ONNX does not"
                " have"
            )


def _check_node(node: onnx.NodeProto, path: Path) -> None:
    if node.domain in _STANDARD and not any(node.output):
        raise ModelError(f"{path}: {_shown(node)} has no output")
    for attribute in node.attribute:
        # One of a local function may stand for what its caller gives.
        if attribute.ref_attr_name:
            continue
        field = _HELD_IN.get(attribute.type)
        empty = field is not None and not attribute.HasField(field)
        if empty or attribute.type not in _ATTRIBUTE_TYPES:
            lacks = "value" if empty else "type"
            raise ModelError(
                f"{path}: attribute '{attribute.name}' of {_shown(node)} has no {lacks}"
            )


def _shown(node: onnx.NodeProto) -> str:
    return f"node '{node.name or next(iter(node.output), '')}' ({node.op_type})"


def check_functions(
    proto: onnx.ModelProto,
    path: Path,
    with_inner: Callable[[Sequence[onnx.NodeProto]], Iterable[onnx.NodeProto]],
) -> None:
    """Refuses local functions that call themselves, or unfold to more nodes than can be handled.

    Thirty functions, each of which calls the next one twice, are 2 KB and a billion nodes; fifteen
    of them run for minutes.

    Raises:
        ModelError: with the functions.
    """
    if not proto.functions:
        return
    calls = {(f.domain, f.name): list(with_inner(f.node)) for f in proto.functions}
    sizes: dict[tuple[str, str], tuple[int, int]] = {}
    for key in calls:
        _unfold(key, calls, sizes, path)
    nodes = list(with_inner(proto.graph.node))
    most = max(_MATTERS, _TIMES * (len(nodes) + sum(map(len, calls.values()))))
    most, total = min(most, MOST_NODES), 0
    for node in nodes:
        size, depth = sizes.get((node.domain, node.op_type), (1, 0))
        total += size
        if total > most or depth > _DEEPEST:
            raise ModelError(
                f"{path}: its local functions unfold to more than {most} nodes or"
                f" {_DEEPEST} calls inside each other, at {_shown(node)}"
            )


def _unfold(
    first: tuple[str, str],
    calls: dict[tuple[str, str], list[onnx.NodeProto]],
    sizes: dict[tuple[str, str], tuple[int, int]],
    path: Path,
) -> None:
    """Finds nodes and depth of a function and those it calls; a stack of its own, not Python's."""
    under_way: dict[tuple[str, str], None] = {}
    stack = [first]
    while stack:
        key = stack[-1]
        if key in sizes:
            stack.pop()
            continue
        under_way[key] = None
        called = [k for n in calls[key] if (k := (n.domain, n.op_type)) in calls]
        waiting = [k for k in dict.fromkeys(called) if k not in sizes]
        again = next((k for k in waiting if k in under_way), None)
        if again is not None:
            chain = [*list(under_way)[list(under_way).index(again) :], again]
            shown = " → ".join(name for _, name in chain[:5])
            raise ModelError(f"{path}: its local functions call themselves: {shown}")
        if waiting:
            stack.append(waiting[0])
            continue
        parts = [sizes.get((n.domain, n.op_type), (1, 0)) for n in calls[key]]
        depth = 1 + max((depth for _, depth in parts), default=0)
        sizes[key] = (sum(size for size, _ in parts), depth)
        del under_way[key]
        stack.pop()
