"""What onnxruntime's optimizations make of a result, found out beside other work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

import onnx

from fusewright.graph.save import save
from fusewright.pipeline.proof import WHOLE_UP_TO
from fusewright.pipeline.stages import Job
from fusewright.plan.plan import Plan
from fusewright.target.formats import TRT_DOMAIN
from fusewright.target.precision import BF16
from fusewright.verify import DEFAULT, LEVELS, Comparison, LevelCheck

# Opening a session takes longer than all proofs of a transformer together (swin_t: 0.5 s a level).
# Of larger graphs the default level alone is looked at.
_EVERY_LEVEL_UP_TO = 400

_NO_BF16 = "onnxruntime's CPU has no kernels for BF16: to run the result takes TensorRT"


def start_levels(
    proto: onnx.ModelProto, plan: Plan, job: Job, side: Executor
) -> Callable[[Comparison], list[str]] | None:
    """Opens a result at onnxruntime's levels in `side`; the notes follow from what was measured.

    None where onnxruntime has no part in it: custom operators, TensorRT's own, or a graph that is
    not run as a whole.
    """
    if job.options.formats.rest == BF16:
        return lambda _: [_NO_BF16]
    nodes = plan.model.graph.nodes
    foreign = bool(job.source.custom) or any(node.domain == TRT_DOMAIN for node in nodes)
    if foreign or job.proof.by_regions or len(nodes) > WHOLE_UP_TO:
        return None
    path = job.workspace.folder / "levels.onnx"
    save(proto, path)
    check = LevelCheck(path, job.proof.reference)
    levels = LEVELS if len(nodes) <= _EVERY_LEVEL_UP_TO else (DEFAULT,)
    opened = side.submit(check.open, levels)
    return lambda measured: check.notes(opened.result(), measured)
