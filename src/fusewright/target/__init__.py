"""What engines can do, as data. Decisions read it, and their reasons cite it."""

from fusewright.target.formats import FORMATS, Format, format_of
from fusewright.target.precision import PRECISIONS, Precision
from fusewright.target.target import TENSORRT, Target, find_target

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "TENSORRT",
    "Format",
    "Precision",
    "Target",
    "find_target",
    "format_of",
]
