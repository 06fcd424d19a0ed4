"""The scales of any placement, from one look at every tensor that some placement observes."""

from __future__ import annotations

import hashlib
import json

from fusewright.calibrate.methods import threshold
from fusewright.calibrate.observers import MaxObserver, from_state
from fusewright.calibrate.ranges import Range, Ranges
from fusewright.calibrate.runner import CalibrationOptions, Observations
from fusewright.quantize.placement import Placement


class Scales:
    """Observers of single tensors; those of a shared scale merge, as if they had been one."""

    def __init__(self, seen: Observations, options: CalibrationOptions) -> None:
        """`seen` has a site for each tensor, named as it is."""
        self._seen, self._options = seen, options
        self._found: dict[tuple[str, tuple[str, ...]], Range] = {}

    def ranges(self, placement: Placement) -> Ranges:
        """The range of every calibrated scale: bit-identical to calibrating this placement."""
        formats = placement.formats
        options = CalibrationOptions(
            self._options.method, self._options.percentile, self._options.samples, formats=formats
        )
        sites = {
            scale: self._range(tensors, options.method_of(scale))
            for scale, tensors in placement.observe.items()
        }
        return Ranges(sites, self._options.method, self._seen.samples)

    def digest(self) -> str:
        """A hash of all that was seen: it names the calibration data."""
        states = {name: observer.state() for name, observer in self._seen.observers.items()}
        text = json.dumps([self._seen.samples, states], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _range(self, tensors: tuple[str, ...], method: str) -> Range:
        key = (method, tensors)
        if key not in self._found:
            whole = self._merged(tensors)
            limit = threshold(whole, method, self._options.percentile)
            self._found[key] = Range(limit, whole.maximum, whole.count)
        return self._found[key]

    def _merged(self, tensors: tuple[str, ...]) -> MaxObserver:
        first, *others = (self._seen.observers[name] for name in tensors)
        if not others:
            return first
        whole = from_state(first.state())
        for other in others:
            whole.merge(other)
        return whole
