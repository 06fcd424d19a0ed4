"""Measuring the ranges that the decision needs: one pass over the calibration samples.

The largest and the smallest value of each tensor are taken in the graph, by two reductions, so that
no tensor outlives its readers. Tensors whose size depends on the data may be empty, which
reductions refuse, and of divisors the smallest magnitude is needed: those are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from fusewright.calibrate.runner import CalibrationOptions, Watcher, watch
from fusewright.graph.convert import to_proto
from fusewright.graph.layout import moved_inputs
from fusewright.graph.save import save
from fusewright.graph.session import Feed
from fusewright.graph.walk import producer
from fusewright.precision.demands import divisors
from fusewright.precision.flow import Flow, Slot
from fusewright.precision.kinds import KINDS
from fusewright.precision.masks import find_masks
from fusewright.precision.ranges import RangeObserver, TensorRanges, gathered

MARGIN = 4.0
"""How far values the calibration data has not shown may exceed the largest it has."""


@dataclass(frozen=True)
class Wanted:
    """What is to be measured.

    Attributes:
        reduced: tensors whose largest and smallest value the graph takes itself.
        fetched: tensors that are looked at whole.
        divisors: of the fetched, those whose smallest magnitude matters.
        masks: reads of stored masks, with the magnitude they are given.
    """

    reduced: tuple[str, ...]
    fetched: tuple[str, ...]
    divisors: frozenset[str]
    masks: dict[Slot, float]


def what_to_measure(graph: gs.Graph, kind: str) -> Wanted:
    """The float32 tensors whose ranges decide what becomes half.

    Args:
        graph: the flat float model.
        kind: "fp16" or "bf16".
    """
    flow = Flow(graph, KINDS[kind])
    by = {id(t): t for t in divisors(flow)}
    sizes = {d for t in graph.inputs for d in t.shape or () if isinstance(d, str)}
    reduced: list[str] = []
    fetched: list[str] = []
    for tensor in flow.computed():
        maker = producer(tensor)
        if id(tensor) in by:
            fetched.append(tensor.name)
        elif maker is None or not moved_inputs(maker, flow.opset):
            (reduced if _is_never_empty(tensor, sizes) else fetched).append(tensor.name)
    return Wanted(
        tuple(reduced), tuple(fetched), frozenset(t.name for t in by.values()), find_masks(flow)
    )


def _is_never_empty(tensor: gs.Tensor, sizes: set[str]) -> bool:
    if tensor.shape is None:
        return False
    return all(d in sizes if isinstance(d, str) else bool(d and d > 0) for d in tensor.shape)


class Probe:
    """A model with reductions added, and the observers of what they give.

    `watchers` may be merged with those of a calibration: then one pass over the data serves both.
    """

    def __init__(self, proto: onnx.ModelProto, wanted: Wanted) -> None:
        """Adds the reductions to `proto`, in place; what the model does not compute is left out."""
        self.proto, self._wanted = proto, wanted
        known = {o for n in proto.graph.node for o in n.output}
        known |= {v.name for v in proto.graph.input}
        self._observers: dict[str, list[RangeObserver]] = {}
        self.watchers: dict[str, list[Watcher]] = {}
        for name in wanted.fetched:
            if name in known:
                self._observe(name, name, name in wanted.divisors)
        self._replace_masks()
        for i, name in enumerate(n for n in wanted.reduced if n in known):
            for op in ("ReduceMax", "ReduceMin"):
                result = f"fusewright_{op}_{i}"
                proto.graph.node.append(helper.make_node(op, [name], [result], result, keepdims=0))
                self._observe(name, result, False)

    def _observe(self, name: str, seen: str, is_divisor: bool) -> None:
        observer = RangeObserver(is_divisor)
        self._observers.setdefault(name, []).append(observer)
        self.watchers.setdefault(seen, []).append(observer)

    def _replace_masks(self) -> None:
        nodes = {node.name: node for node in self.proto.graph.node}
        for (name, index), limit in self._wanted.masks.items():
            if name in nodes:
                mask = f"fusewright_mask_{name}_{index}"
                bounds = [f"{mask}_least", f"{mask}_most"]
                for bound, value in zip(bounds, (-limit, limit), strict=True):
                    array = np.array(value, np.float32)
                    self.proto.graph.initializer.append(numpy_helper.from_array(array, bound))
                clip = helper.make_node("Clip", [nodes[name].input[index], *bounds], [mask], mask)
                self.proto.graph.node.insert(0, clip)
                nodes[name].input[index] = mask

    def ranges(self, samples: int) -> TensorRanges:
        """What was seen of `samples` samples."""
        return gathered(self._observers, self._wanted.masks, samples)


def measure(
    graph: gs.Graph,
    samples: Iterable[Feed],
    kind: str,
    options: CalibrationOptions = CalibrationOptions(),  # noqa: B008 - frozen
    progress: Callable[[int], None] | None = None,
) -> TensorRanges:
    """Measures the ranges of a flat float model's tensors.

    Args:
        graph: the model as it is when Q/DQ pairs are about to be inserted.
        samples: feeds; one is in memory at a time.
        kind: "fp16" or "bf16".
        options: limits, and in `data_folder` where the weights lie that the model refers to.
        progress: called after each feed with the number of samples seen so far.

    Raises:
        DataError: there are no samples, or the model fails on one.
    """
    probe = Probe(to_proto(graph), what_to_measure(graph, kind))
    return run_probe(probe, samples, options, progress)


def run_probe(
    probe: Probe,
    samples: Iterable[Feed],
    options: CalibrationOptions = CalibrationOptions(),  # noqa: B008 - frozen
    progress: Callable[[int], None] | None = None,
) -> TensorRanges:
    """The pass of `measure` alone."""
    model: Path | onnx.ModelProto = probe.proto
    if options.data_folder is not None:
        model = options.data_folder / "ranges.onnx"
        for name in probe.watchers:
            if name not in {v.name for v in probe.proto.graph.output}:
                probe.proto.graph.output.append(onnx.ValueInfoProto(name=name))
        save(probe.proto, model)
    return probe.ranges(watch(model, probe.watchers, samples, options, progress))
