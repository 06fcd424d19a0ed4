"""Whether a rewrite that was undone had to be: some models leave nothing to prove it by."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from building import run
from recipe import Drawn

from fusewright.graph.half import has_half_bodies
from fusewright.verify.last_bits import with_other_last_bits

# Where the model itself is less exact, no rewrite of it can be proven. (‖difference‖ / ‖result‖)
_SETTLED = 1e-3
# A kernel that computes a norm by another formula may be so far off. (the same)
_BY_KERNELS = 1e-4
_PROVEN_ON = 4
_LARGEST_HALF = 65504.0


def is_fault(undone: Any, drawn: Drawn, trace: Any) -> bool:
    """Whether an exact rewrite was undone for no reason.

    Beside bodies an FP16 file stays so, and folding it rounds otherwise than running it.
    """
    if is_half(drawn.proto) and has_half_bodies(drawn.proto):
        return False
    return _is_far(undone, trace) and not _depends_on_last_bits(drawn)


def fits_half(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> bool:
    """Whether half can hold what a sample makes of a model."""
    floats = [a for a in run(proto, feed) if a.dtype.kind == "f"]
    return all(np.abs(a).max(initial=0.0) < _LARGEST_HALF for a in floats)


def plain_kind(kind: str) -> str:
    """For who reads the file back: Casts lie between a Linear and its activation or attention.

    And Linears that are packed there count as one.
    """
    return kind.removesuffix("Act").replace("MHAInProjection", "Linear")


def is_half(proto: onnx.ModelProto) -> bool:
    values = (*proto.graph.input, *proto.graph.output)
    return any(v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for v in values)


def _is_far(undone: Any, trace: Any) -> bool:
    """Whether the proof that a rewrite failed at is off by more than other kernels are."""
    proofs = [e.detail for e in trace if e.what == "proof" and e.name == undone.name]
    found = re.search(r"failed, .*: (\S+)$", proofs[-1]) if proofs else None
    return found is None or float(found.group(1)) > _BY_KERNELS


def _depends_on_last_bits(drawn: Drawn) -> bool:
    """Whether nothing can be proven: other last bits of the weights change the results."""
    model = with_other_last_bits(drawn.proto, Path())
    assert model is not None
    for feed in drawn.feeds[:_PROVEN_ON]:
        for a, b in zip(run(drawn.proto, feed), run(model, feed), strict=True):
            noise = (
                float(np.linalg.norm(np.ravel(a.astype(float) - b))) if a.size == b.size else 1.0
            )
            if noise > _SETTLED * np.linalg.norm(np.ravel(a.astype(float))):
                return True
    return False
