"""Building an engine from an ONNX file: parse, profile, build, read back, write."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fusewright.engine.backend import Backend, BuildLog, find_backend
from fusewright.engine.builder import Builder, BuildRequest, Built, Progress
from fusewright.engine.describe import describe
from fusewright.engine.interrupt import run_stoppable
from fusewright.engine.kernels import parse_kernels
from fusewright.engine.outline import Outline
from fusewright.engine.printed import without_native_stderr
from fusewright.engine.profiles import ShapeRange, Typed, choose_profiles
from fusewright.engine.report import EngineReport, KernelReport
from fusewright.engine.types import formats_of
from fusewright.errors import OutputError
from fusewright.graph.load import read_source
from fusewright.graph.save import check_output, write_whole

LAYERS_SUFFIX = ".layers.json"
"""Of the report that is written beside an engine."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        backend: `tensorrt` or `tensorrt_rtx`; None takes the best that can build here.
        shapes: input name → smallest, optimal and largest shape of a dynamic input.
        sm: compute capability to build for, such as 89; None leaves it to TensorRT.
        layers: also write the report beside the engine, as `<engine>.layers.json`.
        timing_cache: a file of kernel timings, read where it is there and written after the build;
            `tensorrt` only.
        refit: the engine's weights can be replaced later.
        strip_weights: the engine is written without weights, which refitting brings back.
        typed: input name → the options its three shapes were given in, where not in `--shapes`.
    """

    backend: str | None = None
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    sm: int | None = None
    layers: bool = True
    timing_cache: Path | None = None
    refit: bool = False
    strip_weights: bool = False
    typed: Mapping[str, Typed] = field(default_factory=dict)


def build(
    model: str | Path,
    out: str | Path | None = None,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> EngineReport:
    """Builds `model` and reads its plan back.

    The network is strongly typed: what the ONNX says is what runs (TensorRT 8.6, which has no such
    thing, is allowed the formats that the file holds). Engine, report and timing cache are written
    whole or not at all; without `out` the engine is built, reported and dropped.

    Args:
        model: the ONNX file.
        out: the engine.
        options: how.
        progress: told of each step, where TensorRT says (since 8.6), from another thread.

    Raises:
        ModelError: the file is not a whole ONNX model.
        UsageError: `options` name a backend, input, SM or feature that does not exist, or shapes
            that do not fit.
        EngineError: no TensorRT, a node it does not take, or a build that fails.
        OutputError: `out` cannot be written.
    """
    options = options or BuildOptions()
    source = read_source(model)
    targets = engine_targets(source.path, out, options)
    backend = find_backend(options.backend)
    profiles, notes = choose_profiles(source.interface.inputs, options.shapes, options.typed)
    start = time.perf_counter()
    log = BuildLog(backend.module)
    request = _request(source.path, options, profiles, formats_of(source.proto))
    builder = Builder(backend, log)
    builder.check(request)
    with without_native_stderr():  # its logger is told the same
        built = run_stoppable(lambda stop: builder.run(request, stop, progress))
    seconds = time.perf_counter() - start
    plan = describe(parse_kernels(log.text), Outline(source.proto))
    report = EngineReport(
        model=str(model),
        engine=None if out is None else str(out),
        backend=backend.name,
        version=backend.version,
        seconds=seconds,
        engine_bytes=memoryview(built.engine).nbytes,
        profiles=profiles,
        kernels=plan.kernels,
        operators=plan.operators,
        notes=(*notes, *_shortfalls(backend, plan.kernels, profiles)),
        groups=plan.groups,
        findings=plan.findings,
    )
    _write(targets, options, report, built)
    return report


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
    options: BuildOptions,
    profiles: Mapping[str, ShapeRange],
    formats: frozenset[str],
) -> BuildRequest:
    return BuildRequest(
        model=model,
        profiles=profiles,
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


def _write(targets: list[Path], options: BuildOptions, report: EngineReport, built: Built) -> None:
    parts = (memoryview(built.engine), report.to_json().encode())
    contents: dict[Path, bytes | memoryview] = dict(zip(targets, parts, strict=False))
    if options.timing_cache is not None and built.timing_cache is not None:
        contents[options.timing_cache] = built.timing_cache
    write_whole(contents)


def _shortfalls(
    backend: Backend, kernels: tuple[KernelReport, ...], profiles: Mapping[str, ShapeRange]
) -> tuple[str, ...]:
    if not kernels:
        return (f"{backend.name} prints no kernel list that can be read: kernels are not counted",)
    if any(low != high for low, _, high in profiles.values()):
        return ("activation bytes are not counted: the engine's shapes are dynamic",)
    return ()
