"""Fusewright: ONNX in, fused and quantized ONNX and TensorRT engine out, with proof.

The names below load on first use, so that `import fusewright` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusewright.calibrate import ImageOptions, RandomSamples
    from fusewright.engine.build import BuildOptions, build
    from fusewright.engine.compare import compare_engines
    from fusewright.engine.read import read_report
    from fusewright.errors import FusewrightError
    from fusewright.pipeline import Options, Result, apply, compare, inspect, optimize, strip_qdq
    from fusewright.plan.plan import Group, Plan

__version__ = "0.1.0"

_HOME = {
    "BuildOptions": "fusewright.engine.build",
    "FusewrightError": "fusewright.errors",
    "Group": "fusewright.plan.plan",
    "ImageOptions": "fusewright.calibrate",
    "Options": "fusewright.pipeline",
    "Plan": "fusewright.plan.plan",
    "RandomSamples": "fusewright.calibrate",
    "Result": "fusewright.pipeline",
    "apply": "fusewright.pipeline",
    "build": "fusewright.engine.build",
    "compare": "fusewright.pipeline",
    "compare_engines": "fusewright.engine.compare",
    "inspect": "fusewright.pipeline",
    "optimize": "fusewright.pipeline",
    "read_report": "fusewright.engine.read",
    "strip_qdq": "fusewright.pipeline",
}

__all__ = [
    "BuildOptions",
    "FusewrightError",
    "Group",
    "ImageOptions",
    "Options",
    "Plan",
    "RandomSamples",
    "Result",
    "__version__",
    "apply",
    "build",
    "compare",
    "compare_engines",
    "inspect",
    "optimize",
    "read_report",
    "strip_qdq",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fusewright' has no attribute '{name}'")
