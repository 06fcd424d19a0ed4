"""TensorRT's builder behind one method: the same steps for `tensorrt` 8.6 to 11 and RTX."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusewright.engine.backend import Backend, BuildLog
from fusewright.engine.parse_errors import explained, node_errors, refusal
from fusewright.engine.profiles import ShapeRange
from fusewright.engine.types import BF16, FP4, FP8, FP16, INT4, INT8
from fusewright.errors import EngineError, UsageError

Progress = Callable[[str, int, int], None]
"""Told of a phase of the build, its steps done and all its steps."""

_FLAGS = {INT8: "INT8", FP16: "FP16", BF16: "BF16", FP8: "FP8", INT4: "INT4", FP4: "FP4"}
_NODE_IN_MESSAGE = re.compile(r"Could not find any implementation for node (?P<node>.+?)\. ")


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        model: the ONNX file; external data lies beside it.
        profiles: input name → smallest, optimal and largest shape, dynamic inputs only.
        formats: number formats in the file, see `types`.
        sm: compute capability; None leaves it to TensorRT.
        timing_cache: contents of a timing cache, empty for a new one; None uses none.
        refit: the weights can be replaced later.
        strip_weights: the engine is written without the weights that refitting brings.
    """

    model: Path
    profiles: Mapping[str, ShapeRange]
    formats: frozenset[str] = frozenset()
    sm: int | None = None
    timing_cache: bytes | None = None
    refit: bool = False
    strip_weights: bool = False


@dataclass(frozen=True)
class Built:
    """A serialized engine, as a buffer, and the timing cache after the build."""

    engine: Any
    timing_cache: bytes | None = field(default=None, repr=False)


class Builder:
    """One use of TensorRT's builder: holds its module and log, so each step is a short method."""

    def __init__(self, backend: Backend, log: BuildLog) -> None:
        """`log` receives everything TensorRT says, the list of kernels among it."""
        self._trt: Any = backend.module
        self._backend = backend
        self._log = log

    @property
    def name(self) -> str:
        """As messages show it."""
        return f"{self._backend.name} {self._backend.version}"

    def check(self, request: BuildRequest) -> None:
        """Refuses what this TensorRT does not have, before anything is done.

        Raises:
            UsageError: an option or an SM it lacks.
            EngineError: a number format it lacks.
        """
        if request.timing_cache is not None and self._backend.is_rtx:
            raise UsageError(
                f"--timing-cache: {self.name} has none (it times kernels on the GPU that runs the"
                " engine, and looks for one when given a cache)"
            )
        self._flag("REFIT", "--refit", request.refit)
        self._flag("STRIP_PLAN", "--strip-weights", request.strip_weights)
        self._capability(request.sm)
        if not self._is_strongly_typed:
            self._format_flags(request.formats)

    def run(self, request: BuildRequest, stop: threading.Event, progress: Progress | None) -> Built:
        """Parses and builds; `stop` ends it at the next step.

        Raises:
            EngineError: a node it does not take, or a build that fails.
        """
        builder = self._trt.Builder(self._log.logger)
        network = builder.create_network(self._network_flags())
        parser = self._trt.OnnxParser(network, self._log.logger)
        if not parser.parse_from_file(str(request.model)):
            raise refusal(self.name, str(request.model), node_errors(parser))
        config = builder.create_builder_config()
        config.profiling_verbosity = self._trt.ProfilingVerbosity.DETAILED
        self._add_profile(builder, config, request.profiles)
        self._configure(config, request)
        cache = self._timing_cache(config, request.timing_cache)
        monitor = self._monitor(config, stop, progress)
        engine = builder.build_serialized_network(network, config)
        del monitor  # TensorRT keeps no reference of its own
        if engine is None:
            raise EngineError(f"{self.name} cannot build {request.model}: {self._failure()}")
        return Built(engine, bytes(memoryview(cache.serialize())) if cache else None)

    @property
    def _is_strongly_typed(self) -> bool:
        return hasattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    def _network_flags(self) -> int:
        flags = self._trt.NetworkDefinitionCreationFlag
        # 8.6 has no strong typing; its parser needs the batch to be explicit.
        flag = flags.STRONGLY_TYPED if self._is_strongly_typed else flags.EXPLICIT_BATCH
        return 1 << int(flag)

    def _add_profile(self, builder: Any, config: Any, profiles: Mapping[str, ShapeRange]) -> None:
        if not profiles:
            return
        profile = builder.create_optimization_profile()
        for name, shapes in profiles.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)

    def _configure(self, config: Any, request: BuildRequest) -> None:
        flags = [
            self._flag("REFIT", "--refit", request.refit),
            self._flag("STRIP_PLAN", "--strip-weights", request.strip_weights),
        ]
        if not self._is_strongly_typed:
            flags += self._format_flags(request.formats)
        for flag in flags:
            if flag is not None:
                config.set_flag(flag)
        capability = self._capability(request.sm)
        if capability is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(capability, 0)

    def _timing_cache(self, config: Any, contents: bytes | None) -> Any:
        if contents is None:
            return None
        cache = config.create_timing_cache(contents)
        if cache is None or not config.set_timing_cache(cache, False):
            raise EngineError(f"{self.name} cannot use this timing cache: another version wrote it")
        return cache

    def _format_flags(self, formats: frozenset[str]) -> list[Any]:
        return [
            self._flag(_FLAGS[name], f"{name.upper()} in the file", True)
            for name in sorted(formats)
        ]

    def _flag(self, name: str, what: str, wanted: bool) -> Any:
        if not wanted:
            return None
        flag = getattr(self._trt.BuilderFlag, name, None)
        if flag is None:
            raise EngineError(f"{what}: {self.name} has no such thing")
        return flag

    def _capability(self, sm: int | None) -> Any:
        if sm is None:
            return None
        known = getattr(getattr(self._trt, "ComputeCapability", None), "__members__", {})
        if f"SM{sm}" not in known:
            names = ", ".join(name[2:] for name in known if name.startswith("SM"))
            raise UsageError(
                f"--sm {sm}: {self.name} builds for "
                + (f"SM {names}" if names else "the GPU it runs on alone")
            )
        return known[f"SM{sm}"]

    def _monitor(self, config: Any, stop: threading.Event, progress: Progress | None) -> Any:
        # The base class exists only once TensorRT is imported, and only since 8.6.
        if not hasattr(self._trt, "IProgressMonitor"):
            return None
        trt = self._trt

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)
                self.steps: dict[str, int] = {}

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                self.steps[phase] = steps
                if progress is not None:
                    progress(phase, 0, steps)

            def phase_finish(self, phase: str) -> None:
                if progress is not None:
                    progress(phase, self.steps[phase], self.steps[phase])

            def step_complete(self, phase: str, step: int) -> bool:
                if progress is not None:
                    progress(phase, step + 1, self.steps[phase])
                return not stop.is_set()

        monitor = Monitor()
        config.progress_monitor = monitor
        return monitor

    def _failure(self) -> str:
        problems = self._log.problems() or ["no reason given"]
        # The last message says that it failed; the first with a node or a known cause says why.
        texts = [explained(problem) for problem in problems]
        known = [text for text, said in zip(texts, problems, strict=True) if text not in said]
        named = [f[0].strip(". ") for f in map(_NODE_IN_MESSAGE.search, problems) if f]
        return (known or named or texts[-1:])[0]
