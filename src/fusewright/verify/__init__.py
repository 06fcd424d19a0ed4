"""Verifying: a rewritten model against the original, in onnxruntime, optimizations off."""

from fusewright.verify.equivalence import (
    Comparison,
    OutputError,
    Reference,
    compare_models,
    compare_outputs,
)

__all__ = ["Comparison", "OutputError", "Reference", "compare_models", "compare_outputs"]
