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
from fusewright.engine.profiles import described
from fusewright.errors import ModelError, UsageError
from fusewright.graph.attributes import import_graph
from fusewright.graph.convert import to_proto
from fusewright.graph.half import holds_bfloat16
from fusewright.graph.light import is_small_external
from fusewright.graph.load import Source, load_weights, read_source, require_tensors, with_inner
from fusewright.graph.model import Model, trace_origins
from fusewright.graph.session import TensorSpec
from fusewright.graph.walk import is_constant, producer
from fusewright.graph.workspace import Workspace
from fusewright.pipeline.doubles import as_float32, is_double
from fusewright.pipeline.options import Options
from fusewright.pipeline.prepare import Preparation, beyond_reach, in_float32, plain, runnable
from fusewright.pipeline.run import make_plan
from fusewright.pipeline.trace import Silent, Trace, Watcher
from fusewright.plan.demand import data_inputs
from fusewright.plan.plan import FLOAT, HEAVY_OPS, INT8, Group, Plan, node_index
from fusewright.precision.twin import rounding_twin
from fusewright.quantize.existing import count_qdq, dequantized_reads, left_quantized
from fusewright.quantize.strip import strip_qdq as strip_graph
from fusewright.target import FORMATS
from fusewright.verify import Comparison, compare_models
from fusewright.verify.blockwise import holds_blocks, with_emulated_blocks

# Node → input slot behind a Q/DQ pair → type of the pair.
_Reads = Mapping[str, Mapping[int, str]]
# Settings that decide, and have nothing to say of decisions made.
_DECIDING = ("precision", "exclude", "include", "group_precision", "plan")
# Types of pairs that are as good as one of the formats.
_KIN = {**{name: name for name in FORMATS}, "uint8": INT8}


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
    source, reads, calls = _without_pairs(file)
    source = in_float32(source)  # TensorRT's operators for blocks are gone
    if is_double(source):
        source = as_float32(source)
    _refuse_idle(file, settings if reads else {})
    trace = Trace(watcher or Silent()) if trace is None else trace
    plan = make_plan(Preparation(source, trace, opset=options.min_opset), options)
    if reads:
        reads = _by_normalized_name(reads, calls, plan.model)
        nodes = node_index(plan.model.graph)
        for group in plan.groups:
            group.decision, group.reason = _decided(_types_of(group, nodes, reads, plan))
    return plan


def strip_qdq(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    """The float graph of a quantized model: every Q/DQ pair is taken out.

    A model made by Fusewright keeps its float weights in front of their pairs, so it comes back as
    it was; a weight stored quantized comes back with the values it was rounded to. A Clip inside a
    pair, as Brevitas has it, goes with it.

    Raises:
        ModelError: the file is not a whole ONNX model, or computes in integers (QLinearConv,
            DynamicQuantizeLinear, a pair whose scale is computed), which is no pair to take out.
    """
    proto = load_weights(read_source(model)) if isinstance(model, (str, Path)) else model
    graph = import_graph(proto)
    strip_graph(graph)
    stripped = to_proto(graph)
    stripped.metadata_props.extend(proto.metadata_props)
    if (left := left_quantized(stripped)) is not None:
        where = f"{model}: " if isinstance(model, (str, Path)) else ""
        raise ModelError(
            f"{where}{left} stays: it computes in integers, or its scale is computed, and is no"
            " pair that can be taken out; start from the float model"
        )
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
    require_tensors(source)
    feeds = open_samples(data, source.interface.inputs, images).limit(samples)
    judged = _as_given(other, source)
    workspace = Workspace()
    if needs_twin(source, other):
        judged = with_emulated_blocks(runnable(load_weights(other), source), workspace.folder)
        judged = rounding_twin(judged, source.interface.half)
    elif holds_blocks(other.proto):
        judged = with_emulated_blocks(runnable(load_weights(other), source), workspace.folder)
    reference = _as_given(source, source)
    if holds_bfloat16(source.proto):
        reference = in_float32(source).proto
    comparison, _ = compare_models(reference, judged, feeds, workspace.folder)
    return comparison.in_front_of(beyond_reach(source))


def _as_given(source: Source, reference: Source) -> Path | onnx.ModelProto:
    """The file; the model where onnxruntime cannot take that.

    Where all its tensors are external it would infer no shapes; custom operators of the reference
    are cut off.
    """
    if reference.custom:
        return runnable(plain(source), reference)
    scattered = any(is_small_external(tensor) for tensor in source.proto.graph.initializer)
    return load_weights(source) if scattered else source.path


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
    for spec, other in zip(first.interface.inputs, second.interface.inputs, strict=True):
        if not _shapes_agree(spec, other):
            raise ModelError(
                f"{second.path}: its input {described(other)} does not fit that of {first.path},"
                f" {described(spec)}"
            )


def _shapes_agree(spec: TensorSpec, other: TensorSpec) -> bool:
    if spec.shape is None or other.shape is None:
        return True
    return len(spec.shape) == len(other.shape) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int))
        for a, b in zip(spec.shape, other.shape, strict=True)
    )


def _refuse_idle(file: Source, settings: Mapping[str, Any]) -> None:
    given = [name for name in _DECIDING if settings.get(name)]
    if given:
        option = given[0].replace("_", "-")
        raise UsageError(
            f"--{option}: {file.path} is quantized already, its decisions are only read"
        )


def _without_pairs(source: Source) -> tuple[Source, _Reads, _Reads]:
    """The float model, and where it reads behind a pair of which type; layers also by their calls.

    Rewrites know what is written as a call by the name of that.
    """
    if not count_qdq(source.proto):
        return source, {}, {}
    graph = import_graph(plain(source))
    reads = dequantized_reads(graph)
    origins = trace_origins(graph.nodes, set(source.names), source.producers)
    layers = [node for node in graph.nodes if node.op in HEAVY_OPS and node.name in reads]
    calls = {call: reads[node.name] for node in layers for call in origins[node.name]}
    strip_graph(graph)
    proto = to_proto(graph)
    left = {f"{node.domain or 'ai.onnx'}::{node.op_type}" for node in with_inner(proto.graph.node)}
    custom = tuple(name for name in source.custom if name in left)
    float_source = replace(source, proto=proto, on_disk=False, holds_weights=True, custom=custom)
    return float_source, reads, calls


def _by_normalized_name(reads: _Reads, calls: _Reads, model: Model) -> _Reads:
    """The same of the normalized nodes: a Gemm of the file is a MatMul of another name there."""
    found: dict[str, dict[int, str]] = {}
    for node in model.graph.nodes:
        aliases = (node.name, *model.origin(node))
        known = [reads[name] for name in aliases if name in reads]
        if not known and node.op in HEAVY_OPS and is_constant(node.inputs[1]):
            known = [calls[name] for name in aliases if name in calls]
        found[node.name] = {slot: kind for each in known for slot, kind in each.items()}
    return found


def _decided(types: list[str]) -> tuple[str, str]:
    """Decision and reason of a group behind pairs of these types, that of its weight first."""
    if not types:
        return FLOAT, "no Q/DQ pair in the file"
    decision = next((_KIN[kind] for kind in types if kind in _KIN), FLOAT)
    if types == [decision]:
        return decision, "Q/DQ pairs in the file"
    shown = " and ".join(kind.upper() for kind in types)
    none = "" if decision != FLOAT else f", none of {', '.join(FORMATS).upper()}"
    return decision, f"Q/DQ pairs of {shown} in the file{none}"


def _types_of(group: Group, nodes: dict[str, gs.Node], reads: _Reads, plan: Plan) -> list[str]:
    """Types of the pairs that the group's own nodes read: its inputs may have pairs for others.

    A layer is told by its weight, since the pair of its input may stand in front of a MaxPool.
    """
    members = [nodes[name] for name in group.members]
    wanted = [group.inputs[i] for i in group.inputs_to_quantize]
    inputs = [
        _types_read(node, slot, reads, plan.model.opset)
        for name in wanted
        for node in members
        for slot, tensor in enumerate(node.inputs)
        if tensor.name == name
    ]
    weights = [reads.get(m.name, {}).get(1) for m in members if m.op in HEAVY_OPS]
    stored = [kind for kind in weights if kind is not None]
    if not (stored if group.spec.weights else all(inputs)):
        return []
    of_weights = stored if group.spec.weights else []
    return list(dict.fromkeys((*of_weights, *(kind for found in inputs for kind in found))))


def _types_read(node: gs.Node, slot: int, reads: _Reads, opset: int) -> list[str]:
    """Types of the pairs in front of an input, or of the ops that only move its elements."""
    if slot in reads.get(node.name, {}):
        return [reads[node.name][slot]]
    mover = producer(node.inputs[slot])
    count = 0 if mover is None else len(data_inputs(mover, opset))
    found = [_types_read(mover, i, reads, opset) for i in range(count)]
    return [kind for types in found for kind in types] if all(found) else []
