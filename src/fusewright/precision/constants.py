"""Stored numbers: which half cannot hold, and which have the same effect with another magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.families import CONTRACTIONS
from fusewright.graph.layout import moved_inputs
from fusewright.graph.walk import is_constant, peek
from fusewright.precision.demands import divisor_slot
from fusewright.precision.flow import Flow, Slot
from fusewright.precision.flow import largest as _largest
from fusewright.precision.kinds import HalfKind
from fusewright.precision.magnitude import Tolerances
from fusewright.precision.types import DEQUANTIZE, QUANTIZE

_BOUNDS = frozenset({"Clip", "Max", "Min"})
_OF_MASKS = "a mask: Softmax gives 0 for it, a maximum ignores it"
# A divisor this many times larger than what is added to it does not show the addition in half.
_UNSEEN = 2.0**12


@dataclass(frozen=True)
class Bounds:
    """Another magnitude for the finite, non-zero elements of a stored tensor.

    Attributes:
        lowest, highest: what every such magnitude is brought between.
        why: what makes the effect the same.
    """

    lowest: float
    highest: float
    why: str

    def apply(self, values: np.ndarray) -> np.ndarray:
        """The values within the bounds; zeros and infinities stay."""
        kept = ~np.isfinite(values) | (values == 0)
        bounded = np.copysign(np.clip(np.abs(values), self.lowest, self.highest), values)
        return np.where(kept, values, bounded).astype(values.dtype)


@dataclass(frozen=True)
class Verdict:
    """What is to be done about stored numbers: nodes kept float32, reads rewritten."""

    reasons: Mapping[str, str]
    rewrites: Mapping[Slot, Bounds]


def judge(flow: Flow, tolerances: Tolerances) -> Verdict:
    """Looks at every stored tensor that a node could read as half."""
    reasons: dict[str, str] = {}
    rewrites: dict[Slot, Bounds] = {}
    for node in flow.graph.nodes:
        if node.op == DEQUANTIZE:
            continue
        for i in flow.slots(node).inputs:
            if not is_constant(node.inputs[i]):
                continue
            limit = flow.ranges.masks.get((node.name, i))
            if limit is not None:
                if _largest(peek(node.inputs[i])) > limit:
                    rewrites[node.name, i] = Bounds(0.0, limit, _OF_MASKS)
                continue
            found = (
                _in_a_pair(flow, node) if node.op == QUANTIZE else _look(flow, tolerances, node, i)
            )
            if isinstance(found, Bounds):
                rewrites[node.name, i] = found
            elif found is not None:
                reasons[node.name] = found
    rewrites = {slot: bounds for slot, bounds in rewrites.items() if slot[0] not in reasons}
    return Verdict(reasons, rewrites)


def _in_a_pair(flow: Flow, node: gs.Node) -> str | None:
    """Why a weight cannot lie in front of its pair as half; None where it can.

    A small one can: where half loses a part of a step, the step has no reciprocal (`spoiled`).
    """
    weight, kind = node.inputs[0], flow.kind
    reached = _largest(peek(weight))
    if reached <= kind.maximum:
        return None
    return f"'{weight.name}' holds {reached:.3g}, beyond {kind.title}"


def _look(flow: Flow, tolerances: Tolerances, node: gs.Node, index: int) -> Bounds | str | None:
    name, kind = node.inputs[index].name, flow.kind
    magnitudes = np.abs(peek(node.inputs[index]))
    largest = _largest(magnitudes)
    if largest > kind.maximum:
        if node.op in _BOUNDS:
            return Bounds(0.0, kind.maximum, f"no {kind.title} exceeds it")
        return f"'{name}' holds {largest:.3g}, beyond {kind.title}"
    if largest > kind.integers and _counts(magnitudes, kind):
        return f"'{name}' holds whole numbers up to {largest:.6g}"
    small = magnitudes[magnitudes < kind.normal]
    lost = np.abs(small - kind.round(small).astype(np.float32))
    if not lost.any():
        return None
    least = float(small.min(initial=np.inf, where=small > 0))
    return _of_small(flow, tolerances, node, index, (least, float(lost.max())))


def _counts(magnitudes: np.ndarray, kind: HalfKind) -> bool:
    """Whether these are whole numbers of which half would make others: a table of positions."""
    finite = magnitudes[np.isfinite(magnitudes)]
    if not (finite == np.rint(finite)).all():
        return False
    beyond = np.unique(finite[finite > kind.integers])
    # One such number is a factor or a size, no more wrong than any other.
    return beyond.size > 1 and bool((kind.round(beyond).astype(np.float32) != beyond).any())


def _of_small(
    flow: Flow, tolerances: Tolerances, node: gs.Node, index: int, small: tuple[float, float]
) -> Bounds | str | None:
    """`small`: the least magnitude, and the most that one of them loses in half."""
    least, lost = small
    name, kind = node.inputs[index].name, flow.kind
    reason = f"'{name}' holds {least:.2g}, which {kind.title} rounds to 0 or nearly so"
    guarded = _divisors_behind(flow, node)
    if guarded and node.op in (*_BOUNDS, "Add"):
        known = [flow.smallest(t) for t in guarded]
        needed = kind.normal * (_UNSEEN if node.op == "Add" else 1.0)
        if all(smallest is not None and smallest >= needed for smallest in known):
            return Bounds(kind.normal, kind.maximum, "still keeps a division from 0")
        return reason
    if divisor_slot(node) == index:
        return reason
    others = [flow.peak(t) for i, t in enumerate(node.inputs) if i != index and t.name]
    factor = max((p for p in others if p is not None), default=1.0)
    if node.op in ("Add", "Sub", "Sum", "Where") or (node.op in CONTRACTIONS and index == 2):
        factor = 1.0
    elif node.op in CONTRACTIONS:
        factor *= max(node.inputs[index].shape) ** 0.5
    return None if lost * factor <= min(map(tolerances.of, node.outputs)) else reason


def _divisors_behind(flow: Flow, node: gs.Node) -> list[gs.Tensor]:
    """The tensors divided by that are the node's result, laid out in whatever way."""
    found, waiting = [], list(node.outputs)
    while waiting:
        tensor = waiting.pop()
        for reader, i in flow.readers(tensor):
            if divisor_slot(reader) == i:
                found.append(tensor)
            elif moved_inputs(reader, flow.opset):
                waiting += list(reader.outputs)
    return found
