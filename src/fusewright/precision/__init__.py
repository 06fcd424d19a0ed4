"""FP16 or BF16 for what is not quantized: measured, decided, applied, and verified on a twin."""

from fusewright.precision.apply import apply_half
from fusewright.precision.check import overflows
from fusewright.precision.kinds import KINDS, HalfKind
from fusewright.precision.measure import Probe, measure, run_probe, what_to_measure
from fusewright.precision.plan import HalfOptions, HalfPlan, plan_half
from fusewright.precision.ranges import TensorRange, TensorRanges
from fusewright.precision.twin import rounding_twin

__all__ = [
    "KINDS",
    "HalfKind",
    "HalfOptions",
    "HalfPlan",
    "Probe",
    "TensorRange",
    "TensorRanges",
    "apply_half",
    "measure",
    "overflows",
    "plan_half",
    "rounding_twin",
    "run_probe",
    "what_to_measure",
]
