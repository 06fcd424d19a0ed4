"""The whole job: load → clean → normalize → recognise → plan → [quantize] → collapse → write."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fusewright.calibrate import RandomSamples, open_samples
from fusewright.engine.profiles import check_shapes
from fusewright.errors import DataError, PlanError, UsageError
from fusewright.graph.collector import without_gc
from fusewright.graph.convert import to_model
from fusewright.graph.finite import check_finite
from fusewright.graph.load import Source, fingerprint, model_files, read_source, require_tensors
from fusewright.graph.model import Model
from fusewright.graph.refused import FUSED
from fusewright.graph.save import Pending, check_output
from fusewright.graph.session import naming
from fusewright.graph.symbols import bindings
from fusewright.graph.widen import holds_half
from fusewright.graph.workspace import Workspace
from fusewright.normalize import RULES
from fusewright.normalize.linear import POOL_HEAD
from fusewright.pipeline.doubles import is_double, settle
from fusewright.pipeline.finish import finish
from fusewright.pipeline.options import Options
from fusewright.pipeline.prepare import Preparation, in_float32, is_plain, plain, runnable
from fusewright.pipeline.proof import WHOLE_UP_TO, Proof
from fusewright.pipeline.result import Result
from fusewright.pipeline.sizes import sizes_of
from fusewright.pipeline.stages import Job
from fusewright.pipeline.trace import Silent, Trace, Watcher
from fusewright.plan.decide import adopt, decide, keep_float
from fusewright.plan.file import apply_plan_file, plan_beside
from fusewright.plan.plan import OFF, Plan
from fusewright.plan.recognise import recognise
from fusewright.quantize.existing import refuse_quantized
from fusewright.target import FORMATS
from fusewright.verify import Reference


def optimize(
    model: str | Path,
    out: str | Path | None = None,
    calibration: Any = None,
    watcher: Watcher | None = None,
    *,
    pending: Pending | None = None,
    **settings: Any,
) -> Result:
    """Takes an ONNX file to a verified, quantized one.

    Args:
        model: the input file; it is never written to.
        out: where to write; None leaves the result in `Result.model` only.
        calibration: what `open_samples` takes: a path, `module:name`, a dict of arrays, an
            iterable of dicts, a reader, or `RandomSamples()`.
        watcher: told of progress.
        pending: takes what is written, to appear when it is committed.
        **settings: fields of `Options`.

    Raises:
        FusewrightError: with one line that names the culprit; nothing is written then.
    """
    options = Options().with_settings(settings)
    source = read_source(model)
    target = _target(out, source, options)
    refuse_quantized(source)
    source = in_float32(source)
    job = start_job(source, calibration, options, Trace(watcher or Silent()))
    with without_gc(job.proof.by_regions):
        return finish(lambda: _plan(job), job, target, pending)


def apply(
    plan: Plan,
    out: str | Path | None = None,
    calibration: Any = None,
    watcher: Watcher | None = None,
    **settings: Any,
) -> Result:
    """Applies a plan from `inspect`, with the decisions and groups as they are now.

    Without `calibration` the float model is collapsed and nothing is quantized; it is then proven
    on random data. The plan's own graph is not touched.

    Raises:
        FusewrightError: as `optimize`.
    """
    source = read_source(plan.model.path)
    settings.setdefault("precision", "fp32" if calibration is None else plan.precision)
    options = Options().with_settings(settings)
    target = _target(out, source, options)
    refuse_quantized(source)
    source = in_float32(source)
    if calibration is None:
        best = {name: shape for name, (_, shape, _) in options.shapes.items()}
        calibration = RandomSamples(options.verify_samples, shapes=best)
    job = start_job(source, calibration, options, Trace(watcher or Silent()))

    def adopted() -> Plan:
        formats = {group.decision for group in plan.groups if group.apply} & FORMATS.keys()
        fresh = _plan(job, max((FORMATS[name].min_opset for name in formats), default=0))
        if fresh.model.fingerprint != plan.model.fingerprint:
            raise PlanError(f"{source.path}: has changed since the plan was made")
        adopt(fresh, plan)
        if options.formats.quantized is None:
            keep_float(fresh)
        return fresh

    with without_gc(job.proof.by_regions):
        return finish(adopted, job, target)


def start_job(source: Source, calibration: Any, options: Options, trace: Trace) -> Job:
    """Opens the samples and runs the original on the first of them.

    Raises:
        DataError: there is no data, or it does not fit.
        UsageError: declared shapes that do not fit the inputs.
    """
    if calibration is None:
        raise DataError(
            "no calibration data: give --calib DATA, or --random-data where none exists"
        )
    require_tensors(source)
    check_shapes(source.interface.inputs, options.shapes)
    with trace.stage("load") as details:
        samples = open_samples(calibration, source.interface.inputs, options.images)
        feeds = samples.take(min(options.verify_samples, options.samples or options.verify_samples))
        sizes = sizes_of(samples, calibration, source.interface.inputs, options.samples)
        large = len(source.names) > WHOLE_UP_TO
        workspace = Workspace()
        # The original runs beside the first stages: they leave a core idle.
        if is_double(source):
            wide = source
            source = settle(wide, lambda: _proof(wide, feeds, workspace, trace, options))
        side = ThreadPoolExecutor(max_workers=1)
        started = None if large else side.submit(_reference, source, feeds, workspace)
        side.shutdown(wait=False)
        proof = _proof(source, feeds, workspace, trace, options)
        if started is not None:
            proof.start = started.result
        details.append(f"{len(source.names)} nodes, opset {source.opset}")
        if source.was_half:
            details.append("its FP16 and BF16 as FP32")
        if source.custom:
            details.append(f"left alone: {', '.join(source.custom)} and what follows")
    return Job(source, samples, options, trace, proof, workspace=workspace, sizes=sizes)


def _proof(
    source: Source,
    feeds: list[dict[str, np.ndarray]],
    workspace: Workspace,
    trace: Trace,
    options: Options,
) -> Proof:
    large = len(source.names) > WHOLE_UP_TO
    folder = workspace.folder if large else None
    return Proof(lambda: _reference(source, feeds, workspace), trace, options.strict, folder)


def _reference(
    source: Source, feeds: list[dict[str, np.ndarray]], workspace: Workspace
) -> Reference:
    original = source.path if is_plain(source) else runnable(plain(source), source)
    with naming(source.path):
        return Reference(original, feeds, workspace.folder)


def make_plan(preparation: Preparation, options: Options) -> Plan:
    """clean → normalize → recognise → plan.

    Raises:
        ModelError: the model cannot be handled, or has weights that are not finite.
        UsageError: a pattern of the options matches nothing.
        PlanError: the plan file does not fit.
    """
    source, trace = preparation.source, preparation.trace
    with ThreadPoolExecutor(max_workers=1) as reader:
        # Hashing the file needs a core but not the interpreter: it goes on meanwhile.
        digest = reader.submit(fingerprint, source.path, source.proto)
        model = preparation.run((*RULES, POOL_HEAD) if options.pool_head else RULES)
        check_finite(model, lambda: to_model(plain(source), source))
        model.fingerprint = digest.result()
    model.file_ops = dict(zip(source.names, source.ops, strict=True))
    if source.custom:
        model.notes.append(
            f"left alone: custom operators {', '.join(source.custom)} and what depends on them"
            f" ({len(model.frozen)} nodes)"
        )
    model.notes += [*source.notes, *_of_onnxruntime(model)]
    if holds_half(source.proto) and not source.was_half:
        why = "custom operators" if source.custom else "bodies of If, Loop or Scan"
        model.notes.append(f"FP16 tensors beside {why} stay FP16: nothing of them is quantized")
    with trace.stage("recognise") as details:
        plan, misses = recognise(model, known_misses=preparation.misses)
        for group in plan.groups:
            trace.add("recognise", "match", group.kind, group.name)
        for miss in misses:
            trace.add("recognise", "miss", miss.pattern, miss.node, str(miss))
        details.append(f"{len(plan.groups)} groups, {len(plan.unclaimed)} heavy ops unclaimed")
    with trace.stage("plan") as details:
        plan.precision = options.formats.text
        most = {name: shape for name, (_, _, shape) in options.shapes.items()}
        plan.largest = bindings(source.interface.inputs, most)
        decide(plan, options.rules)
        if options.plan is not None:
            apply_plan_file(plan, Path(options.plan))
            _refuse_idle(plan, options)
        if options.formats.quantized is None and not options.group_precision:
            keep_float(plan)
        quantized = sum(group.is_quantized for group in plan.groups)
        details.append(f"{quantized} groups quantized, {len(plan.groups) - quantized} float")
    return plan


def _of_onnxruntime(model: Model) -> list[str]:
    """A note on operators that onnxruntime alone has, where some are left."""
    scopes = (model.graph, *model.graph.subgraphs(recursive=True))
    nodes = (node for scope in scopes for node in scope.nodes)
    left = Counter(node.op for node in nodes if (node.domain or "").startswith(FUSED))
    if not left:
        return []
    named = ", ".join(f"{op} ({count})" if count > 1 else op for op, count in sorted(left.items()))
    return [
        f"left alone: {named} of '{FUSED}', which onnxruntime's optimizer writes and TensorRT"
        " lacks: give the file from before that optimizer"
    ]


def _plan(job: Job, opset: int = 0) -> Plan:
    opset = max(opset, job.options.min_opset)
    preparation = Preparation(job.source, job.trace, job.proof, job.workspace, opset)
    plan = make_plan(preparation, job.options)
    job.flat = preparation.normalized
    return plan


def _refuse_idle(plan: Plan, options: Options) -> None:
    quantized = next((group for group in plan.groups if group.is_quantized), None)
    if options.formats.quantized is None and quantized is not None:
        raise UsageError(
            f"--plan {options.plan}: group '{quantized.name}' is {quantized.decision}, and"
            f" --precision {options.formats.text} quantizes nothing"
        )


def _target(out: str | Path | None, source: Source, options: Options) -> Path | None:
    if out is None:
        return None
    target = Path(out)
    check_output(target, *model_files(source.path, source.proto))
    if options.search != OFF:
        plan = None if options.plan is None else Path(options.plan)
        check_output(plan_beside(target), *([plan] if plan is not None and plan.exists() else []))
    return target
