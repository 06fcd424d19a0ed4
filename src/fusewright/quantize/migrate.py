"""SmoothQuant, the edit: s from the maxima, and the stored tensors divided and multiplied by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.edit import Names
from fusewright.graph.walk import peek
from fusewright.graph.workspace import Workspace
from fusewright.plan.plan import Plan, node_index
from fusewright.quantize.smooth import Smoothing

# s relative to its geometric mean: an outlier of LLMs is some hundred times the other channels.
_BOUND = 1024.0


@dataclass
class Applied:
    """Edits that can be taken back.

    Attributes:
        held: stored tensors with what they held before.
    """

    held: list[tuple[gs.Constant, object]] = field(default_factory=list)

    def store(self, tensor: gs.Constant, values: np.ndarray, workspace: Workspace) -> None:
        """Gives a stored tensor new values, float32, which lie in `workspace`."""
        self.held.append((tensor, tensor._values))
        workspace.put(tensor, np.ascontiguousarray(values, np.float32))

    def undo(self) -> None:
        """Gives every stored tensor its value back, the last edit first."""
        for tensor, values in reversed(self.held):
            tensor._values = values
        self.held.clear()


def row_maxima(weights: Sequence[np.ndarray]) -> np.ndarray:
    """max_k|W_jk| over all columns of all matrices [channels, out], float32 [channels]."""
    largest = [np.maximum(w.max(axis=1), -w.min(axis=1)) for w in weights]
    return np.asarray(np.max(largest, axis=0))


def smoothing_scale(maxima: np.ndarray, of_weights: np.ndarray, alpha: float) -> np.ndarray:
    """s_j = max|X_j|^α / max_k|W_jk|^(1−α), its geometric mean 1; float32 [channels], positive.

    The mean is free: one factor over all channels changes no quantized value. A channel that is
    zero throughout, in X or in W, keeps s = 1.

    Args:
        maxima: max|X_j|, [channels].
        of_weights: max_k|W_jk|, [channels].
        alpha: 0 leaves all the difficulty to the activations, 1 to the weights.
    """
    x, w = np.asarray(maxima, np.float64), np.asarray(of_weights, np.float64)
    alive = (x > 0) & (w > 0)
    scale = np.ones(x.size)
    if alive.any():
        log = alpha * np.log(x[alive]) - (1.0 - alpha) * np.log(w[alive])
        scale[alive] = np.clip(np.exp(log - log.mean()), 1.0 / _BOUND, _BOUND)
    return scale.astype(np.float32)


def apply_smoothing(
    plan: Plan,
    sites: Sequence[Smoothing],
    scales: Mapping[str, np.ndarray],
    workspace: Workspace,
) -> Applied:
    """Divides producers and multiplies weights by the scale of each site, in place.

    A stored vector that other nodes read too is copied for the producer; the group that owns it is
    told the new name.

    Args:
        scales: source tensor of a site → s, float32 [channels].
        workspace: where the changed weights lie.
    """
    applied, nodes = Applied(), node_index(plan.model.graph)
    tensors = plan.model.graph.tensors()
    names = Names(plan.model.graph)
    for site in sites:
        scale = scales[site.source]
        for node, slot in site.divided:
            tensor = _own(plan, nodes[node], slot, names)
            applied.store(tensor, peek(tensor) / scale, workspace)
        for name in site.weights:
            tensor = tensors[name]
            applied.store(tensor, peek(tensor) * scale[:, None], workspace)
    return applied


def _own(plan: Plan, node: gs.Node, slot: int, names: Names) -> gs.Constant:
    """The stored tensor of a slot, made its node's own."""
    shared = node.inputs[slot]
    is_output = any(t is shared for t in plan.model.graph.outputs)
    if len(shared.outputs) == 1 and not is_output:
        return shared
    copy = gs.Constant(names.fresh(f"{shared.name}_smoothed"), peek(shared))
    node.inputs[slot] = copy
    for group in plan.groups:
        if node.name in group.members:
            group.parameters = {
                key: copy.name if name == shared.name else name
                for key, name in group.parameters.items()
            }
    return copy
