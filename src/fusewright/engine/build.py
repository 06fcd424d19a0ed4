"""Building an engine from an ONNX file: parse, profile, build, read back, write."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusewright.engine.backend import Backend, BuildLog, find_backend
from fusewright.engine.kernels import parse_kernels
from fusewright.engine.names import group_names, heavy_nodes
from fusewright.engine.profiles import ShapeRange, choose_profiles
from fusewright.engine.report import EngineReport, describe_kernels, operator_types
from fusewright.errors import EngineError
from fusewright.graph.load import Source, read_source
from fusewright.graph.save import check_output, write_whole


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        backend: `tensorrt` or `tensorrt_rtx`; None takes the best that can build here.
        shapes: input name → smallest, optimal and largest shape of a dynamic input.
        sm: compute capability to build for, such as 89; None leaves it to TensorRT.
        write_report: also write the report beside the engine, as `<engine>.json`.
    """

    backend: str | None = None
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    sm: int | None = None
    write_report: bool = False


def build(
    model: str | Path, out: str | Path | None = None, options: BuildOptions | None = None
) -> EngineReport:
    """Builds `model` and reads its plan back.

    The network is strongly typed: what the ONNX says is what runs. The engine is written to `out`
    whole or not at all; without `out` it is built, reported and dropped.

    Raises:
        ModelError: the file is not a whole ONNX model.
        UsageError: `options` name a backend or input that does not exist, or shapes that do not
            fit it.
        EngineError: no TensorRT, an SM or a node it does not take, or a build that fails.
        OutputError: `out` cannot be written.
    """
    options = options or BuildOptions()
    source = read_source(model)
    targets = _targets(source.path, out, options)
    backend = find_backend(options.backend)
    profiles, notes = choose_profiles(source.interface.inputs, options.shapes)
    start = time.perf_counter()
    log = BuildLog(backend.module)
    engine = _Build(backend, log).run(source, profiles, options.sm)
    seconds = time.perf_counter() - start
    kernels = describe_kernels(parse_kernels(log.text), group_names(source.proto))
    report = EngineReport(
        model=str(model),
        engine=None if out is None else str(out),
        backend=backend.name,
        version=backend.version,
        seconds=seconds,
        engine_bytes=memoryview(engine).nbytes,
        profiles=profiles,
        kernels=kernels,
        operators=operator_types(heavy_nodes(source.proto), kernels),
        notes=(*notes, *_shortfalls(backend, kernels, profiles)),
    )
    contents = (memoryview(engine), report.to_json().encode())
    write_whole(dict(zip(targets, contents, strict=False)))
    return report


def _targets(model: Path, out: str | Path | None, options: BuildOptions) -> list[Path]:
    if out is None:
        return []
    targets = [Path(out)]
    if options.write_report:
        targets.append(Path(f"{out}.json"))
    for target in targets:
        check_output(target, model)
    return targets


def _shortfalls(
    backend: Backend, kernels: tuple[Any, ...], profiles: Mapping[str, ShapeRange]
) -> tuple[str, ...]:
    if not kernels:
        return (f"{backend.name} prints no kernel list that can be read: kernels are not counted",)
    if any(low != high for low, _, high in profiles.values()):
        return ("activation bytes are not counted: the engine's shapes are dynamic",)
    return ()


class _Build:
    """One use of TensorRT's builder: holds its module and log, so each step is a short method."""

    def __init__(self, backend: Backend, log: BuildLog) -> None:
        self._trt: Any = backend.module
        self._backend = backend
        self._log = log

    def run(self, source: Source, profiles: Mapping[str, ShapeRange], sm: int | None) -> Any:
        """The serialized engine, an object with the buffer interface."""
        builder = self._trt.Builder(self._log.logger)
        flag = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(flag))
        parser = self._trt.OnnxParser(network, self._log.logger)
        if not parser.parse_from_file(str(source.path)):
            raise EngineError(self._parse_failure(source, parser))
        config = builder.create_builder_config()
        config.profiling_verbosity = self._trt.ProfilingVerbosity.DETAILED
        self._add_profile(builder, config, profiles)
        self._set_target(config, sm)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            reason = (self._log.problems() or ["no reason given"])[-1]
            raise EngineError(f"{self._name} cannot build {source.path}: {_one_line(reason)}")
        return engine

    @property
    def _name(self) -> str:
        return f"{self._backend.name} {self._backend.version}"

    def _add_profile(self, builder: Any, config: Any, profiles: Mapping[str, ShapeRange]) -> None:
        if not profiles:
            return
        profile = builder.create_optimization_profile()
        for name, shapes in profiles.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)

    def _set_target(self, config: Any, sm: int | None) -> None:
        if sm is None:
            return
        known = getattr(getattr(self._trt, "ComputeCapability", None), "__members__", {})
        if f"SM{sm}" not in known:
            names = ", ".join(name[2:] for name in known if name.startswith("SM"))
            raise EngineError(
                f"{self._name} cannot build for SM {sm}"
                + (f": choose {names}" if names else ": it builds for the GPU it runs on")
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(known[f"SM{sm}"], 0)

    def _parse_failure(self, source: Source, parser: Any) -> str:
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        if not errors:
            return f"{self._name} cannot parse {source.path} and gives no reason"
        first = errors[0]
        reason = _one_line(first.desc()).removeprefix("Assertion failed: ")
        if "Plugin not found" in reason:
            reason = "it has no such operator, nor a plugin of that name"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return f"{self._name} does not take {source.path}: {_culprit(first)}{reason}{more}"


def _culprit(error: Any) -> str:
    """`node "conv1" (Conv) in group "layer1": `, or nothing when the error names no node."""
    text = ""
    if error.node_name() or error.node_operator():
        text = f"node {error.node_name()!r} ({error.node_operator()})"
    stack: list[str] = []
    with contextlib.suppress(AttributeError):  # TensorRT before 10.1 keeps no function stack
        stack = list(error.local_function_stack())
    if stack:
        text += f" in group {stack[-1].rpartition(' (')[0] or stack[-1]!r}"
    return f"{text}: " if text else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
