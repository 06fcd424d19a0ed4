"""What engines can do, as data. Decisions read it, and their reasons cite it."""

from fusewright.target.precision import PRECISIONS, Precision
from fusewright.target.table import TENSORRT, Target

__all__ = ["PRECISIONS", "TENSORRT", "Precision", "Target"]
