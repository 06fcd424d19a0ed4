"""The kernel list that TensorRT-RTX's builder prints in its VERBOSE log, as plain data.

With `ProfilingVerbosity.DETAILED` each kernel is one line: name, type, then its inputs, constants
and outputs with dimensions and data types, then the ONNX nodes it came from, separated by the
ASCII unit separator. A node inside a local function reads `node | call (Function)`, outermost
call last. `Kernel` also holds the rows of trtexec's layer files, see `layers.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

NOT_KERNELS = frozenset({"signal", "wait"})
"""Types of the rows that synchronise streams; every other row counts as a kernel."""

_ROW = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: (?P<tactic>.*?), StreamId: \d+.*?, Metadata: ?(?P<nodes>.*)$",
    re.MULTILINE,
)
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\], .*?Datatype: (?P<dtype>\w+)"
)
_NODE_PREFIX = "[ONNX Layer: "
# TensorRT-RTX and 10.x separate nodes by the ASCII unit separator, others by the record separator
# (NVIDIA/TensorRT issue 4020), some prints by nothing.
_SEPARATORS = re.compile(r"[\x1e\x1f]|(?<=\])(?=\[ONNX Layer: )")

# TensorRT-RTX names these types by their bits.
_SPELLED = {"FP4E2M1": "FP4", "FP8UE8M0": "E8M0"}
BITS = {
    "Float": 32,
    "Half": 16,
    "BFloat16": 16,
    "BF16": 16,
    "Int8": 8,
    "UInt8": 8,
    "FP8": 8,
    "E8M0": 8,
    "Bool": 8,
    "Int4": 4,
    "FP4": 4,
    "Int32": 32,
    "Int64": 64,
}
"""Bits of an element of each data type, by the name TensorRT prints."""


@dataclass(frozen=True)
class TensorType:
    """One tensor a kernel reads or writes; a dimension of -1 is dynamic."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int | None:
        """Number of elements, None while a dimension is dynamic."""
        return None if -1 in self.shape else math.prod(self.shape)

    @property
    def nbytes(self) -> int | None:
        """Size in bytes without padding; None when a dimension or the data type is unknown."""
        bits = BITS.get(self.dtype)
        return None if self.elements is None or bits is None else -(-self.elements * bits // 8)


@dataclass(frozen=True)
class Kernel:
    """One kernel of an engine's plan.

    `type` is TensorRT's word: `correlation` (conv), `gemm`, `runtime_fusion` (conv or GEMM with an
    epilogue), `kgen` (generated: pointwise, reduction, attention), `maxpool`, ... `nodes` are the
    ONNX nodes as the log spells them, `node | call (Function)` inside a local function; empty
    where the builder made the kernel up (a layout change). `tactic` is the implementation, where
    it is named.
    """

    name: str
    type: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    constants: tuple[TensorType, ...]
    nodes: tuple[str, ...]
    tactic: str = ""


def parse_kernels(log: str) -> tuple[Kernel, ...]:
    """Reads the kernels out of a VERBOSE build log, in the order of the plan.

    Stream synchronisation (`signal`, `wait`) is left out. A log without a kernel list, such as
    that of a failed build, gives an empty tuple.
    """
    rows = (_kernel(match) for match in _ROW.finditer(log))
    return tuple(kernel for kernel in rows if kernel.type not in NOT_KERNELS)


def groups_of(kernel: Kernel, names: Collection[str]) -> tuple[str, ...]:
    """The `names` (of calls or of nodes) that `kernel` came from, in the order it lists them."""
    found = (part for node in kernel.nodes for part in _spellings(node) if part in names)
    return tuple(dict.fromkeys(found))


def call_of(node: str) -> tuple[str, str] | None:
    """The outermost call of a node spelled `node | inner (F) | call (Function)`: name, function."""
    call, bracket, function = node.rpartition(" | ")[2].rpartition(" (")
    if " | " not in node or not bracket or not function.endswith(")"):
        return None
    return call, function[:-1]


def _kernel(match: re.Match[str]) -> Kernel:
    return Kernel(
        name=match["name"],
        type=match["type"],
        inputs=_tensors(match["inputs"]),
        outputs=_tensors(match["outputs"]),
        constants=_tensors(match["constants"]),
        nodes=parse_nodes(match["nodes"]),
        tactic=match["tactic"],
    )


def _tensors(text: str) -> tuple[TensorType, ...]:
    return tuple(
        TensorType(
            match["name"],
            _SPELLED.get(match["dtype"], match["dtype"]),
            tuple(int(dim) for dim in match["shape"].split(",") if dim),
        )
        for match in _TENSOR.finditer(text)
    )


def parse_nodes(metadata: str) -> tuple[str, ...]:
    """The ONNX nodes of a row's `Metadata`, `[ONNX Layer: conv1]␟[ONNX Layer: relu1]`."""
    parts = (part.strip() for part in _SEPARATORS.split(metadata))
    return tuple(part.removeprefix(_NODE_PREFIX).removesuffix("]") for part in parts if part)


def _spellings(node: str) -> Iterator[str]:
    """Every name an entry `node | inner (F) | outer (G)` may hold.

    A name may itself contain ` | ` or ` (`, so each run of pieces is offered, with and without a
    trailing function name.
    """
    pieces = node.split(" | ")
    for start in range(len(pieces)):
        for stop in range(start + 1, len(pieces) + 1):
            text = " | ".join(pieces[start:stop])
            yield text
            call, bracket, _ = text.rpartition(" (")
            if bracket and start > 0 and text.endswith(")"):
                yield call
