"""Verifying: a rewritten model against the original, in onnxruntime, optimizations off."""

from fusewright.verify.distance import Comparison, OutputError, compare_outputs
from fusewright.verify.equivalence import Reference, compare_models
from fusewright.verify.levels import DEFAULT, LEVELS, LevelCheck
from fusewright.verify.regions import compare_by_regions
from fusewright.verify.weights import with_quantized_weights

__all__ = [
    "DEFAULT",
    "LEVELS",
    "Comparison",
    "LevelCheck",
    "OutputError",
    "Reference",
    "compare_by_regions",
    "compare_models",
    "compare_outputs",
    "with_quantized_weights",
]
