"""Layer files of trtexec 8.2 to 11: `--exportLayerInfo` and `--exportProfile`, as plain data.

The fields were read off public files and documents:
- 8.2 to 8.6: github.com/NVIDIA/TensorRT, tools/experimental/trt-engine-explorer (`*.graph.json`,
  `*.profile.json`), issues 3737 and 4020: `Format/Datatype` is a sentence that holds the type
  ("Thirty-two wide channel vectorized row major Int8 format"), `Metadata` comes with 8.6.
- 10: issue 4397: `Format/Datatype` is the type alone for kernels of the graph compiler.
- 11: docs.nvidia.com, migration guide "IEngineInspector Usage from TensorRT 10.x to 11.x":
  `Format/Datatype` is split, and `Bindings` became `I/O Tensors`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusewright.engine.kernels import NOT_KERNELS, Kernel, TensorType, parse_nodes
from fusewright.errors import EngineError

# Rows that launch nothing: constants, views, and the bookkeeping around data-dependent shapes.
_NOT_LAUNCHED = NOT_KERNELS | {"NoOp", "Constant", "TrainStation"}
_STATION = re.compile(r"^\[trainStation\d+\]$")

_DTYPE_FIELDS = ("Datatype", "DataType", "Format/Datatype", "Format/DataType")
_DTYPES = {
    "FP32": "Float",
    "FLOAT": "Float",
    "FP16": "Half",
    "HALF": "Half",
    "BF16": "BFloat16",
    "BFLOAT16": "BFloat16",
    "INT8": "Int8",
    "UINT8": "UInt8",
    "FP8": "FP8",
    "E8M0": "E8M0",
    "FP4": "FP4",
    "INT4": "Int4",
    "INT32": "Int32",
    "INT64": "Int64",
    "BOOL": "Bool",
}
_WORD = re.compile(r"[A-Za-z]+\d*[A-Za-z]?\d*")
_REFORMAT_NAME = re.compile(r"^Reformatting CopyNode for \w+ Tensor \d+ to ")
UNKNOWN = "?"
"""The data type of a tensor that a file does not give one of (dynamic shapes)."""


def read_layers(path: Path) -> tuple[Kernel, ...]:
    """The kernels of a `trtexec --exportLayerInfo` file, in the order of the plan.

    Raises:
        EngineError: no such file, or none that holds layers in detail.
    """
    content = read_json(path)
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list):
        raise EngineError(
            f"{path}: not a layer file: it has no list 'Layers' (write one with trtexec"
            " --exportLayerInfo, or fusewright build)"
        )
    if any(isinstance(layer, str) for layer in layers):
        raise EngineError(
            f"{path}: holds names of layers only: export it again with"
            " --profilingVerbosity=detailed at build time"
        )
    try:
        kernels = tuple(_kernel(layer) for layer in layers)
    except KeyError as error:
        raise EngineError(f"{path}: not a layer file of trtexec: a row lacks {error}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise EngineError(f"{path}: not a layer file of trtexec: {error}") from error
    return tuple(k for k in kernels if k.type not in _NOT_LAUNCHED and not _STATION.match(k.name))


def read_times(path: Path) -> dict[str, float]:
    """Kernel name → average milliseconds, from a `trtexec --exportProfile` file.

    Raises:
        EngineError: no such file, or none of that form.
    """
    content = read_json(path)
    rows = content if isinstance(content, list) else []
    times = {row["name"]: row.get("averageMs") for row in rows if _is_timed(row)}
    if not times:
        raise EngineError(
            f"{path}: not a profile of trtexec: it has no rows with 'name' and 'averageMs'"
        )
    return times


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        EngineError: no such file, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path}: not a JSON file ({error})") from error


def _is_timed(row: Any) -> bool:
    return (
        isinstance(row, dict) and isinstance(row.get("averageMs"), (int, float)) and "name" in row
    )


def _kernel(layer: dict[str, Any]) -> Kernel:
    name = str(layer["Name"])
    return Kernel(
        name=name,
        type=str(layer.get("LayerType") or layer.get("ParameterType") or ""),
        inputs=_tensors(layer.get("Inputs", [])),
        outputs=_tensors(layer.get("Outputs", [])),
        constants=(*_tensors(layer.get("Constants", [])), *_weights(name, layer)),
        nodes=_nodes(name, layer),
        tactic=str(layer.get("TacticName", "")),
    )


def _tensors(rows: list[dict[str, Any]]) -> tuple[TensorType, ...]:
    return tuple(
        TensorType(str(row["Name"]), _dtype(row), tuple(int(d) for d in row.get("Dimensions", ())))
        for row in rows
    )


def _dtype(row: dict[str, Any]) -> str:
    text = next((str(row[name]) for name in _DTYPE_FIELDS if name in row), "")
    found = (_DTYPES[word.upper()] for word in _WORD.findall(text) if word.upper() in _DTYPES)
    return next(found, UNKNOWN)


def _weights(name: str, layer: dict[str, Any]) -> Iterator[TensorType]:
    """`"Weights": {"Type": "Int8", "Count": 9408}`; a fused layer has `ConvWeights`."""
    for field in ("Weights", "ConvWeights"):
        held = layer.get(field)
        if isinstance(held, dict) and held.get("Count"):
            dtype = _DTYPES.get(str(held.get("Type", "")).upper(), UNKNOWN)
            # The shape is not given; as one column it is no bias, see `operations`.
            yield TensorType(f"{name}.{field}", dtype, (int(held["Count"]), 1))


def _nodes(name: str, layer: dict[str, Any]) -> tuple[str, ...]:
    metadata = str(layer.get("Metadata") or "")
    if metadata:
        return parse_nodes(metadata)
    # Before 8.6 there is the name alone: `conv1.weight + QuantizeLinear_7 + Conv_9`,
    # `PWN(PWN(a, b), c)`, `a || b`; a copy is named after the layer that reads it.
    if _REFORMAT_NAME.match(name) or "Metadata" in layer or _STATION.match(name):
        return ()
    parts = re.split(r" \+ | \|\| |, ", name.replace("PWN(", "").replace("{ForeignNode[", ""))
    return tuple(dict.fromkeys(part.strip(" )]}") for part in parts if part.strip(" )]}")))
