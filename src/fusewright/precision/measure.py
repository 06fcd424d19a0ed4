"""Measuring the ranges that the decision needs: one pass over the calibration samples.

The largest and the smallest value of each tensor are taken in the graph, by two reductions, so that
no tensor outlives its readers. Tensors whose size depends on the data may be empty, which
reductions refuse, and of divisors the smallest magnitude is needed: those are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from fusewright.calibrate.runner import CalibrationOptions, Watcher, watch
from fusewright.graph.convert import to_proto
from fusewright.graph.layout import moved_inputs
from fusewright.graph.save import save
from fusewright.graph.session import Feed
from fusewright.graph.walk import attribute, producer
from fusewright.precision.demands import divisors
from fusewright.precision.flow import Flow, Slot
from fusewright.precision.kinds import KINDS
from fusewright.precision.masks import find_masks
from fusewright.precision.ranges import RangeObserver, TensorRanges, gathered

MARGIN = 4.0
"""How far values the calibration data has not shown may exceed the largest it has."""
# Below this a row's maximum is that of a mask: −1e4 is the least of those that are in use.
_MASKED = -4096.0
_SOFTMAX_BY_AXIS, _AXES_AS_INPUT = 13, 18


@dataclass(frozen=True)
class Wanted:
    """What is to be measured.

    Attributes:
        reduced: tensors whose largest and smallest value the graph takes itself.
        fetched: tensors that are looked at whole.
        divisors: of the fetched, those whose smallest magnitude matters.
        masks: reads of stored masks, with the magnitude they are given.
        rows: tensors that Softmax reads → the axis of their rows, and the probabilities.
    """

    reduced: tuple[str, ...]
    fetched: tuple[str, ...]
    divisors: frozenset[str]
    masks: dict[Slot, float]
    rows: dict[str, tuple[int, str]] = field(default_factory=dict)


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
        tuple(reduced),
        tuple(fetched),
        frozenset(t.name for t in by.values()),
        find_masks(flow),
        dict(_rows(flow, sizes)),
    )


def _rows(flow: Flow, sizes: set[str]) -> Iterator[tuple[str, tuple[int, str]]]:
    for node in flow.graph.nodes:
        if node.op != "Softmax" or flow.opset < _SOFTMAX_BY_AXIS:
            continue
        tensor = node.inputs[0]
        if flow.types.is_float(tensor) and _is_never_empty(tensor, sizes) and tensor.inputs:
            axis = int(attribute(node, "axis", flow.opset))
            yield tensor.name, (axis, node.outputs[0].name)


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
        self._rows = {
            name: self._watch_rows(name, axis, probabilities, f"fusewright_rows_{i}")
            for i, (name, (axis, probabilities)) in enumerate(wanted.rows.items())
            if name in known
        }
        for i, name in enumerate(n for n in wanted.reduced if n in known):
            for op in ("ReduceMax", "ReduceMin"):
                result = f"fusewright_{op}_{i}"
                self._node(op, [name], result, keepdims=0)
                self._observe(name, result, False)

    def _watch_rows(
        self, logits: str, axis: int, probabilities: str, made: str
    ) -> tuple[RangeObserver, RangeObserver]:
        """Observers of what `Logits` says, but for rows where all is masked."""

        def node(op: str, *inputs: str, to: str, **attributes: Any) -> str:
            self._node(op, list(inputs), f"{made}_{to}", **attributes)
            return f"{made}_{to}"

        opset = next(o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx"))
        along: dict[str, Any] = {"keepdims": 0}
        axes: tuple[str, ...] = ()
        if opset >= _AXES_AS_INPUT:
            axes = (self._store(f"{made}_axes", np.array([axis], np.int64)),)
        else:
            along["axes"] = [axis]
        most = node("ReduceMax", logits, *axes, to="maxima", **along)
        share = node("ReduceMax", probabilities, *axes, to="shares", **along)
        least = self._store(f"{made}_least", np.array(_MASKED, np.float32))
        numbers = [self._store(f"{made}_{n}", np.array(n, np.float32)) for n in (0, 1)]
        seen = node("Greater", most, least, to="seen")
        size = node("Abs", node("Where", seen, most, numbers[0], to="kept"), to="sizes")
        lacks = node("Mul", size, node("Sub", numbers[1], share, to="rest"), to="unsettled")
        found = (
            node("ReduceMax", size, to="top", keepdims=0),
            node("ReduceMean", node("Mul", lacks, lacks, to="squares"), to="square", keepdims=0),
        )
        observers = (RangeObserver(), RangeObserver())
        for name, observer in zip(found, observers, strict=True):
            self.watchers.setdefault(name, []).append(observer)
        return observers

    def _node(self, op: str, inputs: list[str], result: str, **attributes: Any) -> None:
        self.proto.graph.node.append(helper.make_node(op, inputs, [result], result, **attributes))

    def _store(self, name: str, array: np.ndarray) -> str:
        self.proto.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

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
                    self._store(bound, np.array(value, np.float32))
                clip = helper.make_node("Clip", [nodes[name].input[index], *bounds], [mask], mask)
                self.proto.graph.node.insert(0, clip)
                nodes[name].input[index] = mask

    def ranges(self, samples: int) -> TensorRanges:
        """What was seen of `samples` samples."""
        return gathered(self._observers, self._wanted.masks, samples, self._rows)


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
