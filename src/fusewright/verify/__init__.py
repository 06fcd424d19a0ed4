"""Verifying: a rewritten model against the original, in onnxruntime, optimizations off."""

from fusewright.verify.equivalence import (
    Comparison,
    OutputError,
    Reference,
    compare_models,
    compare_outputs,
)
from fusewright.verify.regions import compare_by_regions

__all__ = [
    "Comparison",
    "OutputError",
    "Reference",
    "compare_by_regions",
    "compare_models",
    "compare_outputs",
]
