"""Looking at a model: its groups and decisions, without running it; and comparing two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fusewright.calibrate import ImageOptions, open_samples
from fusewright.errors import ModelError
from fusewright.graph.convert import to_proto
from fusewright.graph.half import holds_bfloat16, widened
from fusewright.graph.load import Source, load_weights, read_source
from fusewright.graph.model import Model
from fusewright.graph.walk import producer
from fusewright.pipeline.options import Options
from fusewright.pipeline.prepare import Preparation, plain
from fusewright.pipeline.run import make_plan
from fusewright.pipeline.trace import Silent, Trace, Watcher
from fusewright.plan.demand import data_inputs
from fusewright.plan.plan import FLOAT, HEAVY_OPS, INT8, Group, Plan, node_index
from fusewright.precision.twin import rounding_twin
from fusewright.quantize.existing import count_qdq, dequantized_formats, dequantized_reads
from fusewright.quantize.insert import strip_qdq as strip_graph
from fusewright.verify import Comparison, compare_models

# Node → its input slots behind a Q/DQ pair.
_Reads = Mapping[str, frozenset[int]]


def inspect(
    model: str | Path, watcher: Watcher | None = None, trace: Trace | None = None, **settings: Any
) -> Plan:
    """The groups of an original, collapsed or quantized file, with decisions and reasons.

    In a quantized file the decisions are those found in it, not those that would be made.

    Args:
        model: the ONNX file.
        watcher: told of progress.
        trace: takes every match and miss, for who wants to see them; it has its own watcher.
        **settings: fields of `Options` that decide (`exclude`, `include`, `plan`).

    Raises:
        FusewrightError: with one line that names the culprit.
    """
    options = Options().with_settings(settings)
    file = read_source(model)
    readable = _readable(file)
    source, reads, formats = _without_pairs(readable)
    trace = Trace(watcher or Silent()) if trace is None else trace
    plan = make_plan(Preparation(source, trace, opset=options.min_opset), options)
    if readable is not file and not reads:
        for group in plan.groups:
            group.decision, group.reason = FLOAT, "BF16; quantizing starts from float32"
    if reads:
        reads = _by_normalized_name(reads, plan.model)
        formats = {
            node.name: formats[alias]
            for node in plan.model.graph.nodes
            for alias in (*plan.model.origin(node), node.name)
            if alias in formats
        }
        nodes = node_index(plan.model.graph)
        for group in plan.groups:
            found = _has_pairs(group, nodes, reads, plan.model.opset)
            form = _format_of(group, nodes, formats)
            group.decision = form if found else FLOAT
            group.reason = f"{'Q/DQ pairs' if found else 'no Q/DQ pair'} in the file"
    return plan


def strip_qdq(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    """The float graph of a quantized model: every INT8 Q/DQ pair is taken out.

    A model made by Fusewright keeps its float weights in front of their pairs, so it comes back as
    it was; a weight stored as INT8 comes back with the values it was rounded to.

    Raises:
        ModelError: the file is not a whole ONNX model.
    """
    proto = load_weights(read_source(model)) if isinstance(model, (str, Path)) else model
    graph = gs.import_onnx(proto)
    strip_graph(graph)
    stripped = to_proto(graph)
    stripped.metadata_props.extend(proto.metadata_props)
    return stripped


def compare(
    first: str | Path,
    second: str | Path,
    data: Any,
    samples: int | None = None,
    images: ImageOptions = ImageOptions(),  # noqa: B008 - frozen
) -> Comparison:
    """The distance of every output of two models with the same interface on the same data.

    Args:
        first: the reference.
        second: the model to judge.
        data: what `open_samples` takes.
        samples: how many are used; None takes all.
        images: preprocessing, where the data is a folder of images.

    Raises:
        ModelError: a file that cannot be loaded, or other inputs or outputs.
        DataError: data that does not fit.
    """
    source, other = read_source(first), read_source(second)
    _require_same_interface(source, other)
    feeds = open_samples(data, source.interface.inputs, images).limit(samples)
    judged: Path | onnx.ModelProto = Path(second)
    if needs_twin(source, other):
        judged = rounding_twin(load_weights(other), source.interface.half)
    return compare_models(Path(first), judged, feeds)[0]


def needs_twin(first: Source, second: Source) -> bool:
    """Whether onnxruntime cannot run `second` on what `first` takes and gives.

    A BF16 model, or one whose interface is half where that of the reference is float32: its float32
    twin, which rounds after each operator, is compared in its place.
    """
    types = {spec.name: spec.dtype for spec in (*first.interface.inputs, *first.interface.outputs)}
    differ = any(types.get(name) == np.float32 for name in second.interface.half)
    return differ or holds_bfloat16(second.proto)


def _require_same_interface(first: Source, second: Source) -> None:
    for what in ("inputs", "outputs"):
        names, others = (
            [spec.name for spec in getattr(one.interface, what)] for one in (first, second)
        )
        if names != others:
            raise ModelError(
                f"{second.path}: its {what} are {', '.join(others)}, those of {first.path} are"
                f" {', '.join(names)}"
            )


def _readable(source: Source) -> Source:
    """The file, in float32 where it has BF16, which onnxruntime could not clean."""
    proto = plain(source) if source.proto.functions else source.proto
    if not holds_bfloat16(proto):
        return source
    return replace(source, proto=widened(plain(source)), on_disk=False, holds_weights=True)


def _without_pairs(source: Source) -> tuple[Source, _Reads, dict[str, str]]:
    """The float model, where it reads behind a pair, and in which format."""
    if not count_qdq(source.proto):
        return source, {}, {}
    graph = gs.import_onnx(plain(source))
    reads, formats = dequantized_reads(graph), dequantized_formats(graph)
    strip_graph(graph)
    float_source = replace(source, proto=to_proto(graph), on_disk=False, holds_weights=True)
    return float_source, reads, formats


def _by_normalized_name(reads: _Reads, model: Model) -> _Reads:
    """The same of the normalized nodes: a Gemm of the file is a MatMul of another name there."""
    names = {n.name: (n.name, *model.origin(n)) for n in model.graph.nodes}
    return {
        name: frozenset().union(*(reads.get(known, frozenset()) for known in aliases))
        for name, aliases in names.items()
    }


def _format_of(group: Group, nodes: Mapping[str, gs.Node], formats: Mapping[str, str]) -> str:
    """The format of its weight, where it has one, else of what it reads; last that of the file."""
    heavy = sorted(group.members, key=lambda name: nodes[name].op not in HEAVY_OPS)
    found = next((formats[name] for name in heavy if name in formats), None)
    everywhere = set(formats.values())
    return found or (everywhere.pop() if len(everywhere) == 1 else INT8)


def _has_pairs(group: Group, nodes: dict[str, gs.Node], reads: _Reads, opset: int) -> bool:
    """Whether the group's own nodes read INT8: its inputs may have pairs for other readers alone.

    A layer is told by its weight, since the pair of its input may stand in front of a MaxPool.
    """
    members = [nodes[name] for name in group.members]
    if group.spec.weights:
        return any(1 in reads.get(m.name, ()) for m in members if m.op in HEAVY_OPS)
    wanted = [group.inputs[i] for i in group.inputs_to_quantize]
    found = [
        _is_read_in_int8(node, slot, reads, opset)
        for name in wanted
        for node in members
        for slot, tensor in enumerate(node.inputs)
        if tensor.name == name
    ]
    return bool(found) and all(found)


def _is_read_in_int8(node: gs.Node, slot: int, reads: _Reads, opset: int) -> bool:
    """Whether a pair stands in front of an input, or of the ops that only move its elements."""
    if slot in reads.get(node.name, ()):
        return True
    mover = producer(node.inputs[slot])
    count = 0 if mover is None else len(data_inputs(mover, opset))
    return count > 0 and all(_is_read_in_int8(mover, i, reads, opset) for i in range(count))
