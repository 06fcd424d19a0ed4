"""The stage that tries other placements on the builder, and what it makes them with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

import fusewright
from fusewright.engine.build import BuildOptions
from fusewright.engine.profiles import choose_profiles
from fusewright.engine.ranges import ShapeRange
from fusewright.errors import UsageError
from fusewright.graph.convert import to_proto
from fusewright.graph.save import save
from fusewright.graph.workspace import Workspace
from fusewright.pipeline.options import Options
from fusewright.pipeline.quantizing import set_types
from fusewright.pipeline.stages import Job, Seen, collapsed_proto, measure
from fusewright.pipeline.trace import Trace
from fusewright.plan.collapse import collapse
from fusewright.plan.decide import matched
from fusewright.plan.file import plan_beside
from fusewright.plan.plan import Group, Plan
from fusewright.precision import HalfPlan
from fusewright.quantize.placement import Placement
from fusewright.search import (
    Journal,
    Judge,
    Scales,
    SearchOptions,
    SearchResult,
    latency_judge,
    plan_judge,
    search_placement,
)
from fusewright.target import find_target
from fusewright.verify import Comparison

LATENCY = "latency"
_FILES = ("trial.onnx", "part.onnx")
_RTX = "rtx"
JOURNAL_SUFFIX = ".search.jsonl"
"""Of the journal that is kept beside an output."""


def find_judge(options: Options, sizes: Mapping[str, ShapeRange]) -> Judge:
    """The judge that is asked for; `sizes` are values of inputs that may hold sizes.

    Raises:
        EngineError: what it builds with is not there.
    """
    shapes = {name: (best, best, best) for name, (_, best, _) in options.shapes.items()}
    if options.search == LATENCY:
        return latency_judge(BuildOptions(shapes=shapes))
    middle = {name: (best, best, best) for name, (_, best, _) in sizes.items()}
    return plan_judge(BuildOptions(shapes=shapes, sm=_buildable_sm(options), sizes=middle))


def search(
    plan: Plan, groups: list[Group], seen: Seen, job: Job, judge: Judge, target: Path | None
) -> tuple[Placement, Seen, SearchResult]:
    """Sets the plan to the best placement found; its pairs, their ranges, and what was tried.

    Args:
        plan: as the rules decided it; its graph is still float.
        groups: that are collapsed.
        seen: with `parts`, every tensor that a placement may observe.
        job: what is asked for.
        judge: says what a placement costs.
        target: the output, where there is one: the journal is kept beside it.

    Raises:
        EngineError: the rules' own placement does not build.
    """
    assert seen.parts is not None
    options = job.options
    scales = Scales(seen.parts, options.calibration)
    beside = None if target is None else target.with_name(target.name + JOURNAL_SUFFIX)
    path = beside if options.search_journal is None else Path(options.search_journal)
    journal = Journal(path, _context(plan, judge, scales, options))
    fixed = {g.name for pattern in _decided_by_user(options) for g in matched(plan, pattern)}
    asked = SearchOptions(
        options.search_budget,
        fixed=frozenset(fixed),
        told=lambda text, seconds: job.trace.watcher.stage("search", text, seconds),
    )
    with job.trace.stage("search") as details:
        workshop = _Workshop(plan, groups, scales, seen, job)
        result = search_placement(plan, workshop, judge, journal, asked)
        if options.search != LATENCY and plan.target.engine.name != _RTX:
            plan.model.notes.append(
                f"the search went by TensorRT-RTX's ahead-of-time plan: {plan.target} may rank"
                " placements otherwise (it requantizes inside an INT8 convolution); where it runs,"
                " --search latency measures"
            )
        for line in result.lines():
            job.trace.add("search", "note", detail=line)
        details.append(result.headline)
    if target is not None:
        plan.model.notes.append(
            f"{plan_beside(target)} holds the placement: in place of --search, --plan with it gives"
            " this model again"
        )
    return result.placement, replace(seen, ranges=scales.ranges(result.placement)), result


def _decided_by_user(options: Options) -> list[str]:
    asked = [request.rpartition("=")[0] for request in options.group_precision]
    return [*asked, *options.include]


def _buildable_sm(options: Options) -> int | None:
    """The target's SM where TensorRT-RTX builds this precision for it; else its own choice."""
    sm, quantized = options.build_target.sm, options.formats.quantized
    try:
        rtx = find_target(f"{_RTX}:sm{sm}")
    except UsageError:
        return None
    runs = quantized is None or (rtx.lacks(quantized) is None and rtx.convolves(quantized))
    return sm if runs else None


def _context(plan: Plan, judge: Judge, scales: Scales, options: Options) -> str:
    """What figures of one placement depend on beside it."""
    collapsed = (options.flat, [(g.kind, g.name, g.apply) for g in plan.groups])
    parts = (fusewright.__version__, plan.model.fingerprint, options.formats.text, options.io_types)
    verified = (options.verify_samples, str(options.smooth), options.balance)
    shapes = sorted((name, ranges) for name, ranges in options.shapes.items())
    text = json.dumps(
        [parts, verified, shapes, judge.name, scales.digest(), str(plan.target), collapsed]
    )
    return hashlib.sha256(text.encode()).hexdigest()


class _Held(Workspace):
    """A job's folder to read from; what a trial stores stays in memory and goes with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, tensor: gs.Constant, values: np.ndarray) -> None:
        tensor.values = values


@dataclass
class _Made:
    plan: Plan
    groups: list[Group]
    half: HalfPlan | None
    job: Job

    @cached_property
    def proto(self) -> onnx.ModelProto:
        return collapsed_proto(self.plan, self.groups)

    @cached_property
    def path(self) -> Path:
        return self._written(self.proto, _FILES[0])

    @cached_property
    def flat(self) -> onnx.ModelProto:
        inputs, options = self.job.source.interface.inputs, self.job.options
        profiles, _ = choose_profiles(inputs, options.shapes)
        for spec in inputs:
            if spec.may_hold_sizes:
                profiles.pop(spec.name, None)  # values, and its shape is static
        flat = to_proto(self.plan.model.graph)
        for value in flat.graph.input:
            if value.name in profiles:
                _, best, _ = profiles[value.name]
                kind = value.type.tensor_type.elem_type
                value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, best))
        return flat

    def write(self, part: onnx.ModelProto) -> Path:
        return self._written(part, _FILES[1])

    def _written(self, proto: onnx.ModelProto, name: str) -> Path:
        path = self.job.workspace.folder / name
        save(proto, path)
        return path

    def compare(self) -> Comparison:
        return measure(self.proto, self.half, self.job)


class _Workshop:
    """Makes models of a plan's placements, beside the plan: its graph stays as it is."""

    def __init__(
        self, plan: Plan, groups: list[Group], scales: Scales, seen: Seen, job: Job
    ) -> None:
        self._plan, self._groups, self._scales, self._seen = plan, groups, scales, seen
        # Trials leave no trace of their own, and one that the linter refuses has failed.
        strict = replace(job.options, strict=True)
        held = _Held(job.workspace.folder)
        self._job = replace(job, options=strict, trace=Trace(), workspace=held)

    @contextmanager
    def make(self, placement: Placement) -> Iterator[_Made]:
        copied = collapse(self._plan.model.graph, self._plan, ())
        plan = replace(self._plan, model=replace(self._plan.model, graph=copied))
        seen = replace(self._seen, ranges=self._scales.ranges(placement))
        half = set_types(plan, placement, seen, self._job).half
        try:
            yield _Made(plan, self._groups, half, self._job)
        finally:
            for name in _FILES:
                (self._job.workspace.folder / name).unlink(missing_ok=True)
