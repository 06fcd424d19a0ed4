"""What looks for attention share, and how layout is probed where sizes are symbolic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from fusewright.graph.carried import FEWER, fewer
from fusewright.graph.dims import Dim, parse, resolve
from fusewright.graph.layout import LARGEST_PROBE, Prober, Region


@dataclass
class Scene:
    """What looks for attention share: the graph's opset and outputs, and what was probed already.

    Attributes:
        sizes: what stands for each symbolic dimension while a region is probed.
        batch: of all inputs where it is static; regions that carry it are probed with less.
        found: what was found around each core.
        probe: runs regions, each structure once.
    """

    opset: int
    outputs: tuple[gs.Tensor, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    batch: int | None = None
    found: dict[tuple[str, int], object] = field(default_factory=dict)
    probe: Prober = field(default_factory=Prober)

    def whole(self) -> Scene:
        """The same, everything probed with the batch that it has."""
        return replace(self, batch=None, found={})

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The shape of `tensor` while it is probed; None where its rank or width is not known.

        An unknown size gets one of its own: the number of windows where the map is dynamic.
        """
        shape = () if tensor.shape is None else resolve(tensor.shape, self.sizes)
        if not shape or shape[-1] is None:
            return None
        free = max(self.sizes.values(), default=1) + 1
        return tuple(free + i if size is None else size for i, size in enumerate(shape))

    def moved(
        self, region: Region, *others: Region
    ) -> tuple[list[np.ndarray], tuple[int, ...]] | str:
        """Where the elements of a region's source go, and its shape; or why that is not known.

        Where every one of the regions carries the batch, the shape is that of a smaller one.

        Args:
            others: whose results this one's are compared with.
        """
        if len(region.sources) != 1:
            return f"layout of {len(region.sources)} tensors"
        (source,) = region.sources
        shape = self.shape(source)
        if shape is None:
            return f"the shape {source.shape} of '{source.name}' is not known"
        batch = self.batch if all(map(self._carries, (region, *others))) else None
        probed = shape if batch is None else fewer(shape, batch)
        if prod(probed) > LARGEST_PROBE:
            return f"'{source.name}' of shape {list(shape)} is too large to probe: a smaller batch"
        moved = self.probe(region, shape, self.opset, batch)
        return "its layout is computed by the model" if moved is None else (moved, probed)

    def _carries(self, region: Region) -> bool:
        if self.batch is None or self.batch <= FEWER or len(region.sources) != 1:
            return False
        shape = self.shape(region.sources[0])
        return shape is not None and self.probe.carries(region, shape, self.opset, self.batch)


def static_batch(graph: gs.Graph) -> int | None:
    """The size that all inputs have along axis 0; None where they differ, or it is dynamic."""
    sizes = {tensor.shape[0] if tensor.shape else None for tensor in graph.inputs}
    (size,) = sizes if len(sizes) == 1 else (None,)
    return size if isinstance(size, int) else None


def probe_sizes(graph: gs.Graph) -> dict[str, int]:
    """A small size for each symbolic dimension of the graph, no two alike."""
    names = dict.fromkeys(d for t in graph.tensors().values() for d in t.shape or ())
    sizes = [parse(name) for name in names if isinstance(name, str)]
    symbols = dict.fromkeys(s for size in sizes if isinstance(size, Dim) for s in size.symbols())
    return {symbol: 2 + i for i, symbol in enumerate(symbols)}
