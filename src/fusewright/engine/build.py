"""Building an engine from an ONNX file: parse, profile, build, read back, write."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from fusewright.engine.builder import BuildRequest, Progress
from fusewright.engine.describe import describe
from fusewright.engine.kernels import parse_kernels
from fusewright.engine.outline import Outline
from fusewright.engine.parse_errors import RefusedNodes
from fusewright.engine.process import Answer, BuilderProcess
from fusewright.engine.profiles import Typed, choose_profiles
from fusewright.engine.ranges import ShapeRange, spelled
from fusewright.engine.report import EngineReport, KernelReport
from fusewright.engine.types import formats_of
from fusewright.errors import OutputError
from fusewright.graph.load import read_source, with_inner
from fusewright.graph.refused import FUSED
from fusewright.graph.save import Pending, check_output, committed

LAYERS_SUFFIX = ".layers.json"
"""Of the report that is written beside an engine."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        backend: `tensorrt` or `tensorrt_rtx`; None takes the best that can build here.
        shapes: input name → smallest, optimal and largest shape of a dynamic input, or values of
            one that holds sizes.
        sm: compute capability to build for, such as 89; None leaves it to TensorRT.
        layers: also write the report beside the engine, as `<engine>.layers.json`.
        timing_cache: a file of kernel timings, read where it is there and written after the build;
            `tensorrt` only.
        refit: the engine's weights can be replaced later.
        strip_weights: the engine is written without weights, which refitting brings back.
        typed: input name → the options its three shapes were given in, where not in `--shapes`.
        sizes: input name → smallest, optimal and largest values, where shapes turn out to depend
            on an input that `shapes` does not name.
    """

    backend: str | None = None
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    sm: int | None = None
    layers: bool = True
    timing_cache: Path | None = None
    refit: bool = False
    strip_weights: bool = False
    typed: Mapping[str, Typed] = field(default_factory=dict)
    sizes: Mapping[str, ShapeRange] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildPlace:
    """Where a build takes place; the defaults are those of a build that stands alone.

    Attributes:
        process: that builds, for who builds often; None starts one.
        pending: takes what is written, to appear when it is committed.
        shown: what messages and the report call the model, where it lies elsewhere for now.
    """

    process: BuilderProcess | None = None
    pending: Pending | None = None
    shown: str | None = None


def build(
    model: str | Path,
    out: str | Path | None = None,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    place: BuildPlace | None = None,
) -> EngineReport:
    """Builds `model` and reads its plan back.

    The network is strongly typed: what the ONNX says is what runs (TensorRT 8.6, which has no such
    thing, is allowed the formats that the file holds). Engine, report and timing cache are written
    whole or not at all; without `out` the engine is built, reported and dropped. TensorRT runs in a
    process of its own: where its native code crashes, that is an error like others.

    Args:
        model: the ONNX file.
        out: the engine.
        options: how.
        progress: told of each step, where TensorRT says (since 8.6).
        place: where.

    Raises:
        ModelError: the file is not a whole ONNX model.
        UsageError: `options` name a backend, input, SM or feature that does not exist, or shapes
            that do not fit.
        EngineError: no TensorRT, a node it does not take, or a build that fails.
        OutputError: `out` cannot be written.
    """
    options, place = options or BuildOptions(), place or BuildPlace()
    process = place.process or BuilderProcess()
    process.start()  # it loads TensorRT while the file is read here
    try:
        return _built(Path(model), out, options, progress, replace(place, process=process))
    finally:
        if place.process is None:
            process.close()


def _built(
    model: Path,
    out: str | Path | None,
    options: BuildOptions,
    progress: Progress | None,
    place: BuildPlace,
) -> EngineReport:
    assert place.process is not None
    source = read_source(model)
    targets = engine_targets(source.path, out, options)
    profiles, notes = choose_profiles(source.interface.inputs, options.shapes, options.typed)
    shown = place.shown or str(model)
    start = time.perf_counter()
    request = _request(model, shown, options, profiles, formats_of(source.proto))
    with committed(place.pending) as files:
        part = files.part(targets[0]) if targets else None
        try:
            answer = place.process.build(options.backend, request, part, progress)
        except OutputError as error:
            raise OutputError(f"{out}: {error}") from error
        except RefusedNodes as error:
            told = _with_origin(error, source.proto)
            if told is None:
                raise
            raise told from error
        seconds = time.perf_counter() - start
        plan = describe(parse_kernels(answer.kernels), Outline(source.proto))
        report = EngineReport(
            model=shown,
            engine=None if out is None else str(out),
            backend=answer.backend,
            version=answer.version,
            seconds=seconds,
            engine_bytes=answer.engine_bytes,
            profiles=profiles,
            kernels=plan.kernels,
            operators=plan.operators,
            notes=(
                *notes,
                *_of_samples(answer, options),
                *_shortfalls(answer, plan.kernels, profiles),
            ),
            groups=plan.groups,
            findings=plan.findings,
        )
        if len(targets) > 1:
            files.write(targets[1], report.to_json().encode())
        if options.timing_cache is not None and answer.timing_cache is not None:
            files.write(options.timing_cache, answer.timing_cache)
    return report


def _with_origin(error: RefusedNodes, model: onnx.ModelProto) -> RefusedNodes | None:
    """The same, with where operators come from that onnxruntime alone has; None: there is none."""
    fused = {node.op_type for node in with_inner(model.graph.node) if node.domain == FUSED}
    if not fused:
        return None
    told = RefusedNodes(
        f"{error}; {', '.join(sorted(fused))} of '{FUSED}' were written by onnxruntime's optimizer:"
        " give the file from before it, or what `fusewright optimize` makes of this one"
    )
    told.details = error.details
    return told


def engine_targets(model: Path, out: str | Path | None, options: BuildOptions) -> list[Path]:
    """The engine and, where it is wanted, the report beside it.

    Raises:
        OutputError: one of them cannot be written, or is a file of the model.
    """
    if out is None:
        return []
    targets = [Path(out)]
    if options.layers:
        targets.append(Path(f"{out}{LAYERS_SUFFIX}"))
    checked = [*targets, *([options.timing_cache] if options.timing_cache else [])]
    for target in checked:
        check_output(target, model)
    return targets


def _request(
    model: Path,
    shown: str,
    options: BuildOptions,
    profiles: Mapping[str, ShapeRange],
    formats: frozenset[str],
) -> BuildRequest:
    return BuildRequest(
        model=model,
        shown=shown,
        profiles=profiles,
        sizes=options.sizes,
        formats=formats,
        sm=options.sm,
        timing_cache=_read_cache(options.timing_cache),
        refit=options.refit,
        strip_weights=options.strip_weights,
    )


def _read_cache(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise OutputError(f"--timing-cache {path}: cannot be read: {error.strerror}") from error


def _of_samples(answer: Answer, options: BuildOptions) -> list[str]:
    return [
        f"input '{name}' holds sizes, and the engine takes those of the samples,"
        f" {':'.join(map(spelled, options.sizes[name]))}: --shapes says others"
        for name in answer.sizes
    ]


def _shortfalls(
    answer: Answer, kernels: tuple[KernelReport, ...], profiles: Mapping[str, ShapeRange]
) -> tuple[str, ...]:
    if not kernels:
        return (
            f"{answer.backend} prints no kernel list that can be read: kernels are not counted",
        )
    if any(low != high for low, _, high in profiles.values()):
        return ("activation bytes are not counted: the engine's shapes are dynamic",)
    return ()
