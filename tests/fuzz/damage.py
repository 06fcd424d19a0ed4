"""Damage to files: of bytes, and of the fields of a protobuf message."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.message import Message

NUMBERS = (0, 1, -1, 2, 7, 17, 255, 2**31 - 1, -(2**31), 2**31, 2**40, 2**63 - 1, -(2**63))
TEXTS = ("", "x", "\0", "a\nb", "../../etc/passwd", "層", "/dev/zero", "A" * 5000, "Frobnicate",
         "Conv", "com.microsoft", "ai.onnx.ml", "-1", "NaN")  # fmt: skip
FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-45)


def bytes_damaged(data: bytes, draw: random.Random) -> bytes:
    """A few bytes flipped, cut out, put in, or the end gone."""
    found = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        way, size = draw.randrange(6), max(1, len(found))
        place = draw.randrange(size)
        length = draw.choice([1, 2, 8, 64, 1000])
        if way < 2 and found:
            found[place] ^= 1 << draw.randrange(8)
        elif way == 2:
            del found[place : place + length]
        elif way == 3:
            found[place:place] = draw.randbytes(length)
        elif way == 4:
            other = draw.randrange(size)
            found[place : place + length] = found[other : other + length]
        elif draw.randrange(3) == 0:
            del found[place:]
    return bytes(found)


def fields_damaged(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Fields anywhere in the model set to what nobody expects, left out or doubled."""
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        places = list(_places(model))
        # Depth first by kind of message: else nearly all would be in stored tensors' dims.
        kinds = sorted({type(m).__name__ for m, _ in places})
        kind = draw.choice(kinds)
        message, field = draw.choice([p for p in places if type(p[0]).__name__ == kind])
        _damage(message, field, draw)
    return model


def _places(message: Message) -> Iterator[tuple[Message, Any]]:
    """Every field that is set, of a message and those in it."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is None:
            continue
        for inner in value if field.is_repeated else [value]:
            yield from _places(inner)


def _damage(message: Message, field: Any, draw: random.Random) -> None:
    name = field.name
    if draw.randrange(5) == 0:
        message.ClearField(name)
    elif field.message_type is not None:
        _shuffle(message, field, draw)
    elif field.is_repeated:
        values = getattr(message, name)
        place = draw.randrange(len(values))
        way = draw.randrange(3)
        if way == 0:
            del values[place]
        elif way == 1:
            values.append(values[place])
        else:
            values[place] = _fitting(field, values[place], draw)
    else:
        setattr(message, name, _fitting(field, getattr(message, name), draw))


def _shuffle(message: Message, field: Any, draw: random.Random) -> None:
    """A message taken out, doubled, or emptied."""
    value = getattr(message, field.name)
    if not field.is_repeated:
        value.Clear()
        return
    place, way = draw.randrange(len(value)), draw.randrange(4)
    if way == 0:
        del value[place]
    elif way == 1:
        value.add().CopyFrom(value[place])
    elif way == 2:
        value[place].Clear()
    else:
        value[place].CopyFrom(value[draw.randrange(len(value))])


def _fitting(field: Any, old: Any, draw: random.Random) -> Any:
    """Another value of the field's type."""
    if isinstance(old, bytes):
        return draw.choice([b"", old[:-1], old + b"\0", b"\xff\xfe", old[: len(old) // 2]])
    if isinstance(old, str):
        return draw.choice(TEXTS)
    if isinstance(old, float):
        return draw.choice(FLOATS)
    if field.enum_type is not None:
        return draw.choice([v.number for v in field.enum_type.values])
    limit = 2**31 if field.cpp_type == field.CPPTYPE_INT32 else 2**63
    return draw.choice([n for n in NUMBERS if -limit <= n < limit] + [old + 1, old - 1])


def moved_out(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Stored tensors that point to a file, rightly or not."""
    for tensor in model.graph.initializer:
        if draw.random() < 0.5:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.ClearField("raw_data")
            entries = {
                "location": draw.choice(["w.bin", "none.bin", *TEXTS]),
                "offset": str(draw.choice(NUMBERS)),
                "length": str(draw.choice(NUMBERS)),
            }
            for key in draw.sample(sorted(entries), draw.choice([1, 2, 3])):
                tensor.external_data.add(key=key, value=entries[key])
    return model
