"""The whole job: order of passes, proof after each, undo."""

from fusewright.pipeline.inspection import compare, inspect, strip_qdq
from fusewright.pipeline.options import Options
from fusewright.pipeline.result import Result
from fusewright.pipeline.run import apply, optimize
from fusewright.pipeline.trace import Event, Trace, Watcher

__all__ = [
    "Event",
    "Options",
    "Result",
    "Trace",
    "Watcher",
    "apply",
    "compare",
    "inspect",
    "optimize",
    "strip_qdq",
]
