"""Rounding the weights of a graph to INT4, by one of three methods."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.errors import DataError, UsageError
from fusewright.quantize.int4.blocks import BlockWeight, round_to_nearest
from fusewright.quantize.int4.clipping import round_clipped
from fusewright.quantize.int4.gptq import gptq
from fusewright.quantize.int4.sites import Int4Site, matrix_of
from fusewright.quantize.int4.statistics import InputStatistics, moments_of
from fusewright.quantize.int4.storing import Storing

RTN, AWQ, GPTQ = "rtn", "awq", "gptq"
METHODS = (RTN, AWQ, GPTQ)
# Columns whose error is measured, evenly spaced.
_COLUMNS = 256


@dataclass(frozen=True)
class Int4Settings:
    """How weights become INT4.

    Attributes:
        method: `rtn` rounds to nearest and needs no data; `awq` clips where that helps, best behind
            `scale_channels`; `gptq` clips too and makes up for each row's error in later ones.
        damping: of GPTQ, relative to the mean of the second moments' diagonal.
    """

    method: str = GPTQ
    damping: float = 0.01

    def __post_init__(self) -> None:
        """Refuses what is no method, or no damping."""
        if self.method not in METHODS:
            raise UsageError(f"no INT4 method {self.method!r}: choose {', '.join(METHODS)}")
        if not 0.0 < self.damping <= 1.0:
            raise UsageError(f"GPTQ damping {self.damping} is not above 0 and at most 1")

    @property
    def needs_statistics(self) -> bool:
        """Whether the layers' inputs have to be observed."""
        return self.method != RTN

    @property
    def scales_channels(self) -> bool:
        """Whether `scale_channels` comes first."""
        return self.method == AWQ


@dataclass(frozen=True)
class RoundedWeight:
    """What became of one weight.

    Attributes:
        site: where it is.
        error: ‖X·(W − Ŵ)‖² / ‖X·W‖² over the calibration rows; of the weight itself without them.
    """

    site: Int4Site
    error: float

    @property
    def sqnr_db(self) -> float:
        """The error in dB; infinite where there is none."""
        return float(-10.0 * np.log10(self.error)) if self.error > 0 else float("inf")


def round_weights(
    graph: gs.Graph,
    sites: Sequence[Int4Site],
    settings: Int4Settings = Int4Settings(),
    statistics: Mapping[str, InputStatistics] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[RoundedWeight, ...]:
    """Stores every site's weight as INT4 in front of a DequantizeLinear, in place.

    Each weight is rounded by itself, for the float model's inputs.

    Args:
        graph: the flat normalized graph, of opset 21 or later.
        sites: from `int4_sites`.
        settings: the method.
        statistics: from `observe_inputs`, by the tensors that the sites read; as `scale_channels`
            returned them where it came first.
        progress: called after each weight with the number of weights done.

    Raises:
        ModelError: the graph's opset is too old.
        DataError: statistics that the method needs are missing or broken.
    """
    seen = dict(statistics or {})
    _check(sites, settings, seen)
    tensors = graph.tensors()
    storing = Storing(graph)
    done: dict[str, RoundedWeight] = {}
    for together in _alike(sites):
        moments = moments_of(together[0], seen) if together[0].reads[0] in seen else None
        matrices = [matrix_of(tensors[site.tensor], site) for site in together]
        rounded = _rounded(np.concatenate(matrices, axis=1), together[0], moments, settings)
        stop = 0
        for site, matrix in zip(together, matrices, strict=True):
            start, stop = stop, stop + matrix.shape[1]
            own = BlockWeight(rounded.codes[:, start:stop], rounded.scales[:, start:stop])
            done[site.tensor] = RoundedWeight(site, _error(matrix, own, moments))
            storing.store(site, own)
            if progress is not None:
                progress(len(done))
    storing.close()
    return tuple(done[site.tensor] for site in sites)


def _check(
    sites: Sequence[Int4Site], settings: Int4Settings, seen: Mapping[str, InputStatistics]
) -> None:
    for site in sites if settings.needs_statistics else ():
        for name in site.reads:
            if name not in seen:
                raise DataError(f"no statistics of '{name}', which '{site.tensor}' multiplies")
            if len(seen[name].mean) != site.shape[0]:
                raise DataError(
                    f"statistics of '{name}' have {len(seen[name].mean)} channels, and"
                    f" '{site.tensor}' {site.shape[0]}"
                )


def _alike(sites: Sequence[Int4Site]) -> list[list[Int4Site]]:
    """Sites that read the same tensors in the same blocks: one decomposition serves them all."""
    found: dict[Hashable, list[Int4Site]] = {}
    for site in sites:
        found.setdefault((site.reads, site.block, site.makes_logits), []).append(site)
    return list(found.values())


def _rounded(
    matrix: np.ndarray, site: Int4Site, moments: np.ndarray | None, settings: Int4Settings
) -> BlockWeight:
    if settings.method == RTN or moments is None:
        return round_to_nearest(matrix, site.block)
    if settings.method == GPTQ:
        return gptq(matrix, moments, site.block, settings.damping)
    # Clipping makes most values smaller, and q·k with them: AWQ leaves q and k out as well
    # (vit_mnist_ts13, the second packed projection alone: 41.7 dB rounded, 39.4 clipped).
    if site.makes_logits:
        return round_to_nearest(matrix, site.block)
    return round_clipped(matrix, moments, site.block)


def _error(matrix: np.ndarray, rounded: BlockWeight, moments: np.ndarray | None) -> float:
    width = matrix.shape[1]
    chosen = np.linspace(0, width - 1, min(width, _COLUMNS)).round().astype(int)
    exact = matrix[:, chosen]
    difference = exact - BlockWeight(rounded.codes[:, chosen], rounded.scales[:, chosen]).values
    size, error = exact, difference
    if moments is not None:
        size, error = moments @ exact, moments @ difference
    norm = float(np.vdot(exact, size))
    return float(np.vdot(difference, error)) / norm if norm > 0 else 0.0
