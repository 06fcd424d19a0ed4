"""Which tensors half cannot hold: too large, or so small that what is left of them counts."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.layout import moved_inputs
from fusewright.graph.walk import is_constant, peek, toposort
from fusewright.precision.demands import divisors
from fusewright.precision.flow import Flow
from fusewright.precision.ops import STEADY
from fusewright.precision.types import QUANTIZE
from fusewright.precision.wholes import is_whole

# An error of this share of a tensor's largest magnitude changes nothing: with the usual 30 between
# that and its root mean square, noise 60 dB below the signal.
_HARMLESS = 2.0**-14
# Of an INT8 step: what it adds to the rounding that follows is lost in that.
_OF_A_STEP = 2.0**-5


class Tolerances:
    """How large an error each tensor may have: its own harmless one, or more if its readers say so.

    A branch scaled by 1e-6 (ConvNeXt's layer scale) is small, but all that reads it is the sum with
    a stream a million times larger.
    """

    def __init__(self, flow: Flow, harmless: float = _HARMLESS) -> None:
        """Walks from the outputs to the inputs.

        Args:
            flow: with the ranges.
            harmless: share of a tensor's largest magnitude.
        """
        self._flow, self._harmless = flow, harmless
        self._of: dict[int, float] = {}
        for node in reversed(toposort(flow.graph.nodes)):
            for tensor in node.outputs:
                self._of[id(tensor)] = self._tolerance(tensor)
        for tensor in flow.graph.inputs:
            self._of[id(tensor)] = self._tolerance(tensor)

    def of(self, tensor: gs.Tensor) -> float:
        """The largest absolute error that does no harm; 0 where nothing is known."""
        return self._of.get(id(tensor), 0.0)

    def _tolerance(self, tensor: gs.Tensor) -> float:
        own = self._harmless * _finite(self._flow.peak(tensor))
        if self._flow.leaves(tensor):
            return own
        asked = [self._asked(node, i) for node, i in self._flow.readers(tensor)]
        return max(own, min(asked, default=0.0))

    def _asked(self, node: gs.Node, index: int) -> float:
        if node.op in ("Shape", "Size"):
            return np.inf
        if node.op == QUANTIZE:
            steps = node.inputs[1]
            return _OF_A_STEP * float(peek(steps).min()) if is_constant(steps) else 0.0
        if node.op in STEADY or moved_inputs(node, self._flow.opset):
            return min(self.of(t) for t in node.outputs)
        if node.op == "Mul":
            other = self._flow.peak(node.inputs[1 - index])
            return self.of(node.outputs[0]) / other if other else 0.0
        return 0.0


def ill_held(flow: Flow, tolerances: Tolerances, masked: Set[int], margin: float) -> dict[int, str]:
    """`id` of each float32 tensor that has to stay float32, with the reason.

    Args:
        masked: `id` of tensors in which masks lie, which do not grow with the data.
        margin: by how much values may exceed those measured.
    """
    found: dict[int, str] = {}
    for tensor in flow.computed():
        known = id(tensor) in masked or flow.is_stored(tensor)
        why = _ill_held(flow, tensor, tolerances.of(tensor), 1.0 if known else margin)
        if why is None and not known:
            why = _miscounted(flow, tensor)
        if why is not None:
            found[id(tensor)] = f"'{tensor.name}' {why}"
    for tensor in divisors(flow):
        smallest = flow.smallest(tensor)
        if smallest is not None and smallest < flow.kind.normal:
            why = f"something is divided by '{tensor.name}', which gets as small as {smallest:.2g}"
            found.setdefault(id(tensor), why)
    return found


def _ill_held(flow: Flow, tensor: gs.Tensor, tolerance: float, margin: float) -> str | None:
    peak, kind = flow.peak(tensor), flow.kind
    if peak is None:
        return "was not measured"
    if not np.isfinite(peak):
        return "is not finite on the calibration data"
    if peak * margin > kind.maximum:
        more = "" if margin == 1 else f", and new data may be {margin:g} times larger"
        return f"reaches {peak:.3g}; {kind.title} ends at {kind.maximum:.6g}{more}"
    if peak > 0 and kind.subnormal / 2 > tolerance:
        return f"is below {peak:.2g}, where {kind.title} loses its bits"
    return None


def _miscounted(flow: Flow, tensor: gs.Tensor) -> str | None:
    peak, kind = flow.peak(tensor), flow.kind
    if peak is None or peak <= kind.integers or not is_whole(flow, tensor):
        return None
    return f"counts up to {peak:.6g}; {kind.title} counts up to {kind.integers}"


def _finite(peak: float | None) -> float:
    return peak if peak is not None and np.isfinite(peak) else 0.0
