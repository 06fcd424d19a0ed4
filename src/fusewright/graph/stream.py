"""Writing a model whose weights lie in other files as one file, weight by weight.

What is in memory at once is the graph without its large weights. The fields are written as protobuf
would: a `graph` of the length that all of it has together, with each stored tensor at its end.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx.external_data_helper import load_external_data_for_model

from fusewright.graph.external import is_external

_BYTES = 2
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def write_whole_model(proto: onnx.ModelProto, weights: Path, file: BinaryIO) -> None:
    """Writes `proto` with the weights that it refers to in the folder `weights`.

    Below 2 GB in all, which is what protobuf reads. The same model gives the same bytes.
    """
    copy, rest = onnx.ModelProto(), onnx.ModelProto()
    copy.graph.CopyFrom(proto.graph)
    del copy.graph.initializer[:]
    load_external_data_for_model(copy, str(weights))  # of If, Loop and Scan
    rest.CopyFrom(proto)
    rest.ClearField("graph")
    head = copy.graph.SerializeToString(deterministic=True)
    with ExitStack() as opened:
        maps = _Maps(weights, opened)
        parts = [_Part.of(tensor, maps) for tensor in proto.graph.initializer]
        length = len(head) + sum(part.length for part in parts)
        file.write(rest.SerializeToString(deterministic=True))
        file.write(_field(_GRAPH, length) + head)
        for part in parts:
            for piece in part.pieces():
                file.write(piece)


@dataclass(frozen=True)
class _Part:
    """One stored tensor as it will stand in the graph: its fields, and a large one's values."""

    fields: bytes
    values: memoryview

    @classmethod
    def of(cls, tensor: onnx.TensorProto, maps: _Maps) -> _Part:
        if not is_external(tensor):
            return cls(tensor.SerializeToString(deterministic=True), memoryview(b""))
        bare = onnx.TensorProto()
        bare.CopyFrom(tensor)
        bare.ClearField("external_data")
        bare.data_location = onnx.TensorProto.DEFAULT
        values = maps.values({entry.key: entry.value for entry in tensor.external_data})
        fields = bare.SerializeToString(deterministic=True)
        return cls(fields + _field(_RAW_DATA, len(values)), values)

    @property
    def inner(self) -> int:
        return len(self.fields) + len(self.values)

    @property
    def length(self) -> int:
        return len(_field(_INITIALIZER, self.inner)) + self.inner

    def pieces(self) -> Iterator[bytes | memoryview]:
        yield _field(_INITIALIZER, self.inner)
        yield self.fields
        yield self.values


class _Maps:
    """The files with the weights, mapped: nothing is copied."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self._folder, self._opened = folder, opened
        self._maps: dict[str, memoryview] = {}

    def values(self, place: dict[str, str]) -> memoryview:
        name, offset = place["location"], int(place.get("offset", 0))
        if name not in self._maps:
            file = self._opened.enter_context((self._folder / name).open("rb"))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._opened.callback(mapped.close)
            self._maps[name] = self._opened.enter_context(memoryview(mapped))
        whole = self._maps[name]
        length = int(place.get("length", len(whole) - offset))
        return self._opened.enter_context(whole[offset : offset + length])


def _field(number: int, length: int) -> bytes:
    """The key and length in front of a field of bytes."""
    return _varint(number << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
