"""Calibration: samples in, one range per quantized tensor out."""

from fusewright.calibrate.images import ImageOptions
from fusewright.calibrate.observers import Histogram, MaxObserver, merge_states
from fusewright.calibrate.random_data import RandomSamples
from fusewright.calibrate.ranges import Range, Ranges
from fusewright.calibrate.runner import CalibrationOptions, Observations, calibrate, observe
from fusewright.calibrate.samples import Samples, open_samples

__all__ = [
    "CalibrationOptions",
    "Histogram",
    "ImageOptions",
    "MaxObserver",
    "Observations",
    "RandomSamples",
    "Range",
    "Ranges",
    "Samples",
    "calibrate",
    "merge_states",
    "observe",
    "open_samples",
]
