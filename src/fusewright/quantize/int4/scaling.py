"""AWQ, the decision: which input channels are scaled up before they are rounded.

x·W = (x/s)·(diag(s)·W): a channel that carries large activations is rounded as finely as s makes it
large, and 1/s moves into the norm or Linear in front, where it costs nothing. The places are those
of SmoothQuant (`quantize.smooth`), and the edit is its own too; s = mean|x|^α with the α of the
least error of the layers that read x.

Lin et al., AWQ, https://arxiv.org/abs/2306.00978, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fusewright.graph.workspace import Workspace
from fusewright.plan.plan import INT8, Plan
from fusewright.quantize.int4.clipping import round_clipped
from fusewright.quantize.int4.sites import Int4Site, matrix_of
from fusewright.quantize.int4.statistics import InputStatistics, moments_of
from fusewright.quantize.migrate import Applied, apply_smoothing
from fusewright.quantize.smooth import Skip, Smoothing, plan_smoothing

_CANDIDATES = tuple(i / 10 for i in range(10))
# Columns that the search looks at, evenly spaced: their error tells that of thousands.
_COLUMNS = 128
# s relative to its geometric mean; a channel that is hardly ever on must not be scaled away.
_BOUND = 1024.0


@dataclass(frozen=True)
class Scaling:
    """One place with its s.

    Attributes:
        place: what is divided and multiplied.
        scale: s, float32 [K], its geometric mean 1; all ones where nothing is gained.
        alpha: the exponent; 0 for no scaling.
        error: Δᵀ H Δ over all readers relative to that without scaling.
    """

    place: Smoothing
    scale: np.ndarray
    alpha: float
    error: float


@dataclass(frozen=True)
class Scaled:
    """What `scale_channels` did.

    Attributes:
        statistics: of the tensors as they are now.
        scalings: every place, those left alone (α 0) among them.
        skips: tensors whose channels cannot be scaled, and why.
        applied: the edits, which can be taken back.
    """

    statistics: dict[str, InputStatistics]
    scalings: tuple[Scaling, ...]
    skips: tuple[Skip, ...]
    applied: Applied


def scale_channels(
    plan: Plan,
    sites: Sequence[Int4Site],
    statistics: Mapping[str, InputStatistics],
    workspace: Workspace,
    progress: Callable[[int], None] | None = None,
) -> Scaled:
    """Scales input channels of INT4 weights where that lowers their error, in place.

    The graph computes what it did, up to rounding of its float weights.

    Args:
        plan: whose graph is edited; a group that gets a norm's parameters of its own is told.
        sites: from `int4_sites`.
        statistics: from `observe_inputs`.
        workspace: where changed weights lie.
        progress: called after each place with the number of places searched.
    """
    found = scaling_places(plan, sites)
    places = [place for place in found if isinstance(place, Smoothing)]
    scalings = []
    for place in places:
        scalings.append(_search(place, plan, sites, statistics))
        if progress is not None:
            progress(len(scalings))
    changed = [s for s in scalings if s.alpha]
    scales = {s.place.source: s.scale for s in changed}
    applied = apply_smoothing(plan, [s.place for s in changed], scales, workspace)
    seen = dict(statistics)
    for scaling in changed:
        for name in scaling.place.observe:
            seen[name] = seen[name].scaled(1.0 / scaling.scale)
    skips = tuple(place for place in found if isinstance(place, Skip))
    return Scaled(seen, tuple(scalings), skips, applied)


def scaling_places(plan: Plan, sites: Sequence[Int4Site]) -> list[Smoothing | Skip]:
    """Where input channels of INT4 weights can be scaled, or why not.

    Only tensors whose readers are all among `sites`, none of which makes q or k of an attention:
    AWQ judges those by the output of the whole attention.
    """
    wanted = {name for site in sites for name in site.groups}
    # Smoothing asks for groups that quantize what they read; here nothing but weights is rounded.
    groups = [
        replace(group, decision=INT8, inputs_to_quantize=tuple(range(len(group.inputs))))
        for group in plan.groups
        if group.name in wanted
    ]
    found = plan_smoothing(Plan(plan.model, groups))
    by_name = {site.tensor: site for site in sites}
    return [place if isinstance(place, Skip) else _allowed(place, by_name) for place in found]


def _allowed(place: Smoothing, sites: Mapping[str, Int4Site]) -> Smoothing | Skip:
    if not set(place.weights) <= sites.keys():
        return Skip(place.source, place.groups, "is read by Linears that stay float")
    if any(sites[name].makes_logits for name in place.weights):
        # digits_vit: s found for the first packed projection took 5 dB from its own 30.3.
        reason = "becomes q and k: what an error costs there shows behind the attention only"
        return Skip(place.source, place.groups, reason)
    return place


@dataclass(frozen=True)
class _Matrix:
    """Some columns of a weight, its block, and the moments of what it multiplies."""

    columns: np.ndarray
    block: int
    moments: np.ndarray

    @classmethod
    def of(
        cls, weight: np.ndarray, site: Int4Site, statistics: Mapping[str, InputStatistics]
    ) -> _Matrix:
        width = weight.shape[1]
        chosen = np.linspace(0, width - 1, min(width, _COLUMNS)).round().astype(int)
        return cls(weight[:, chosen], site.block, moments_of(site, statistics))

    def error(self, scale: np.ndarray) -> float:
        """tr(Δᵀ H Δ) with the rows scaled before they are rounded, and back.

        Clipped, as they will be: the gains of both are not independent.
        """
        weight, moments = self.columns * scale[:, None], self.moments / scale[:, None] / scale
        difference = weight - round_clipped(weight, moments, self.block).values
        return float(np.vdot(difference, moments @ difference))


def awq_scale(mean: np.ndarray, alpha: float) -> np.ndarray:
    """s = mean|x|^α, its geometric mean 1; float32 [K]. A channel that is never on keeps 1."""
    scale, alive = np.ones(mean.size), mean > 0
    if alive.any():
        log = alpha * np.log(mean[alive].astype(np.float64))
        scale[alive] = np.clip(np.exp(log - log.mean()), 1.0 / _BOUND, _BOUND)
    return scale.astype(np.float32)


def _search(
    place: Smoothing,
    plan: Plan,
    sites: Sequence[Int4Site],
    statistics: Mapping[str, InputStatistics],
) -> Scaling:
    """s by the error of all Linears behind the place; nothing is edited."""
    tensors = plan.model.graph.tensors()
    readers = [site for site in sites if site.tensor in place.weights]
    matrices = [_Matrix.of(matrix_of(tensors[s.tensor], s), s, statistics) for s in readers]
    mean = np.mean([statistics[name].mean for name in place.observe], axis=0)
    errors = [sum(m.error(awq_scale(mean, alpha)) for m in matrices) for alpha in _CANDIDATES]
    best = int(np.argmin(errors))  # the first of equals: the least scaling
    gain = errors[best] / errors[0] if errors[0] > 0 else 1.0
    return Scaling(place, awq_scale(mean, _CANDIDATES[best]), _CANDIDATES[best], gain)
