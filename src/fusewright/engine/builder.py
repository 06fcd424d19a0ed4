"""TensorRT's builder behind one method: the same steps for `tensorrt` 8.6 to 11 and RTX."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusewright.engine.backend import Backend, BuildLog
from fusewright.engine.formats import BF16, FP4, FP8, FP16, INT4, INT8
from fusewright.engine.parse_errors import explained, node_errors, refusal
from fusewright.engine.ranges import ShapeRange, spelled
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
        shown: what messages call it.
        profiles: input name → smallest, optimal and largest shape, dynamic inputs only; of an input
            that holds sizes, the smallest, optimal and largest values.
        sizes: the same of inputs of which it is not known whether they hold sizes.
        formats: number formats in the file, see `types`.
        sm: compute capability; None leaves it to TensorRT.
        timing_cache: contents of a timing cache, empty for a new one; None uses none.
        refit: the weights can be replaced later.
        strip_weights: the engine is written without the weights that refitting brings.
    """

    model: Path
    shown: str
    profiles: Mapping[str, ShapeRange]
    sizes: Mapping[str, ShapeRange] = field(default_factory=dict)
    formats: frozenset[str] = frozenset()
    sm: int | None = None
    timing_cache: bytes | None = None
    refit: bool = False
    strip_weights: bool = False


@dataclass(frozen=True)
class Built:
    """A serialized engine, as a buffer, the timing cache, and for which inputs it took `sizes`."""

    engine: Any
    timing_cache: bytes | None = field(default=None, repr=False)
    sizes: tuple[str, ...] = ()


class Builder:
    """One use of TensorRT's builder: holds its module and log, so each step is a short method."""

    def __init__(
        self, backend: Backend, log: BuildLog, told: Callable[[str], None] = lambda step: None
    ) -> None:
        """`log` receives everything TensorRT says, `told` what it is about to do."""
        self._trt: Any = backend.module
        self._told = told
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

    def run(self, request: BuildRequest, progress: Progress) -> Built:
        """Parses and builds.

        Raises:
            UsageError: sizes are declared for an input that holds none.
            EngineError: a node it does not take, sizes that are not declared, or a build that
                fails.
        """
        builder = self._trt.Builder(self._log.logger)
        network = builder.create_network(self._network_flags())
        parser = self._trt.OnnxParser(network, self._log.logger)
        self._told("parsed the file")
        if not parser.parse_from_file(str(request.model)):
            raise refusal(self.name, request.shown, node_errors(parser))
        config = builder.create_builder_config()
        config.profiling_verbosity = self._trt.ProfilingVerbosity.DETAILED
        sizes = self._add_profile(builder, config, network, request)
        self._configure(config, request)
        cache = self._timing_cache(config, request.timing_cache)
        monitor = self._monitor(config, progress)
        self._told("built the engine")
        engine = builder.build_serialized_network(network, config)
        del monitor  # TensorRT keeps no reference of its own
        if engine is None:
            raise EngineError(f"{self.name} cannot build {request.shown}: {self._failure()}")
        return Built(engine, bytes(memoryview(cache.serialize())) if cache else None, sizes)

    @property
    def _is_strongly_typed(self) -> bool:
        return hasattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    def _network_flags(self) -> int:
        flags = self._trt.NetworkDefinitionCreationFlag
        # 8.6 has no strong typing; its parser needs the batch to be explicit.
        flag = flags.STRONGLY_TYPED if self._is_strongly_typed else flags.EXPLICIT_BATCH
        return 1 << int(flag)

    def _add_profile(
        self, builder: Any, config: Any, network: Any, request: BuildRequest
    ) -> tuple[str, ...]:
        """Says which shapes and values are for; returns the inputs that took those of `sizes`."""
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        profile = builder.create_optimization_profile()
        used, taken = False, list[str]()
        for tensor in inputs:
            shape, declared = tuple(tensor.shape), request.profiles.get(tensor.name)
            if tensor.is_shape_tensor:
                if declared is None and tensor.name in request.sizes:
                    declared = request.sizes[tensor.name]
                    taken.append(tensor.name)
                if declared is None:
                    raise EngineError(_unknown_sizes(request.shown, tensor.name, shape))
                profile.set_shape_input(tensor.name, *declared)
            elif declared is None:
                continue
            elif -1 in shape or declared == (shape,) * 3:
                profile.set_shape(tensor.name, *declared)
            else:
                raise UsageError(
                    f"{request.shown}: sizes are given for input '{tensor.name}'"
                    f" ({spelled(declared[1])}), and no shape depends on its values: leave it out"
                )
            used = True
        if used:
            config.add_optimization_profile(profile)
        return tuple(taken)

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

    def _monitor(self, config: Any, progress: Progress) -> Any:
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
                progress(phase, 0, steps)

            def phase_finish(self, phase: str) -> None:
                progress(phase, self.steps[phase], self.steps[phase])

            def step_complete(self, phase: str, step: int) -> bool:
                progress(phase, step + 1, self.steps[phase])
                return True

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


def _unknown_sizes(model: str, name: str, shape: tuple[int, ...]) -> str:
    count = shape[0] if shape else 1
    example = ":".join("x".join([size] * count) for size in ("1", "64", "256"))
    return (
        f"{model}: input '{name}' {list(shape)} holds sizes that shapes depend on: say which with"
        f" --shapes {name}:MIN:OPT:MAX, values such as {example}"
    )
