"""FP64 read as FP32, which is what TensorRT makes of it, where the results stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fusewright.errors import DataError, ModelError
from fusewright.graph.doubles import computes_in_double
from fusewright.graph.load import Source, inline_functions
from fusewright.graph.refused import IN_FLOAT32
from fusewright.graph.session import first_line
from fusewright.graph.widen import holds_double, narrow
from fusewright.pipeline.prepare import plain, runnable
from fusewright.pipeline.proof import Proof

_STAGE, _NAME = "load", "FP64 as FP32"
_ENGINE = "TensorRT computes FP64 as FP32 wherever it stands"


def is_double(source: Source) -> bool:
    """Whether a model computes in FP64 on what it is fed."""
    if not holds_double(source.proto):
        return False
    return computes_in_double(inline_functions(source.proto, source.path))


def as_float32(source: Source, why: str = _ENGINE) -> Source:
    """The model in float32, with its interface as it is, and a note with the reason.

    One with custom operators stays as it is, since what they take is not known; the note says so.
    """
    if source.custom:
        note = "FP64 beside custom operators stays FP64: nothing of it is quantized"
        return replace(source, notes=(*source.notes, note))
    proto = plain(source)
    narrow(proto)
    notes = (*source.notes, f"its FP64 is read as FP32: {why}")
    return replace(source, proto=proto, on_disk=False, holds_weights=True, notes=notes)


def settle(source: Source, prove: Callable[[], Proof]) -> Source:
    """The model in float32 where that gives its results; else as it is, with a note.

    Where onnxruntime's CPU lacks an operator in FP64 there is nothing to compare with.

    Args:
        source: computes in FP64.
        prove: runs the original, and makes the proof against it.

    Raises:
        VerifyError: the results differ, and strict proof was asked for.
    """
    if source.custom:
        return as_float32(source)
    try:
        proof = prove()
        _ = proof.reference
    except (DataError, ModelError) as error:
        said = first_line(error).removeprefix(f"{source.path}: ").removesuffix(f": {IN_FLOAT32}")
        cannot = f"{_ENGINE}; not compared with FP64 ({said})"
        return as_float32(source, cannot)
    twin = as_float32(source)
    if proof.holds(_STAGE, runnable(plain(source), source), twin.proto, _NAME):
        return twin
    detail = proof.trace.events[-1].detail
    proof.undo(_STAGE, _NAME, detail)
    note = (
        f"its FP64 stays FP64, for as FP32 it gives other results ({detail}); {_ENGINE}, so that"
        " an engine gives those"
    )
    return replace(source, notes=(*source.notes, note))
