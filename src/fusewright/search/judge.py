"""Who says how good a placement is: the kernels and bytes of a plan, or measured time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from fusewright.engine.backend import find_backend
from fusewright.engine.build import BuildOptions, BuildPlace, build
from fusewright.engine.process import BuilderProcess
from fusewright.engine.report import EngineReport, Finding
from fusewright.engine.trtexec_run import build_with_trtexec, find_trtexec
from fusewright.errors import DataError, EngineError

RTX = "tensorrt_rtx"
Builds = Callable[[Path], EngineReport]


@dataclass(frozen=True)
class Figures:
    """What a built placement costs.

    Attributes:
        kernels: of the plan, without stream synchronisation.
        activation_bytes: read and written by all kernels, constants apart.
        weight_bytes: of the constants, each once.
        seconds: that the builder took, and measuring.
        milliseconds: of one run, where it was measured.
        findings: what in the plan could be better.
        by_parts: they are another placement's, with what building parts of the two shows.
    """

    kernels: int
    activation_bytes: int
    weight_bytes: int
    seconds: float
    milliseconds: float | None = None
    findings: tuple[Finding, ...] = ()
    by_parts: bool = False

    def with_part(self, old: Figures, new: Figures) -> Figures:
        """Those of a plan in which a part that costs `old` is one that costs `new`."""
        return replace(
            self,
            kernels=self.kernels + new.kernels - old.kernels,
            activation_bytes=self.activation_bytes + new.activation_bytes - old.activation_bytes,
            weight_bytes=self.weight_bytes + new.weight_bytes - old.weight_bytes,
            seconds=self.seconds + new.seconds + old.seconds,
        )

    @property
    def bytes(self) -> int:
        """Activations and weights."""
        return self.activation_bytes + self.weight_bytes

    def __str__(self) -> str:
        """`131 kernels, 139.04 MB`, and the time where there is one."""
        text = f"{self.kernels} kernels, {self.bytes / 1e6:.2f} MB"
        text = f"about {text}" if self.by_parts else text
        return text if self.milliseconds is None else f"{self.milliseconds:.3f} ms ({text})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Figures:
        """The inverse of `to_dict`.

        Raises:
            DataError: it is not one.
        """
        try:
            return cls(**{**data, "findings": tuple(map(_finding, data["findings"]))})
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not the figures of a placement: {error!r}") from error


class Judge(Protocol):
    """Builds a placement and says what it costs."""

    @property
    def name(self) -> str:
        """What judges, with its version: figures of another judge do not compare."""

    def figures(self, model: Path) -> Figures:
        """Builds the model.

        Raises:
            EngineError: it does not build.
        """

    def amounts(self, found: Figures) -> dict[str, float]:
        """What counts, by its unit: none may be more than the rules' own, and their mean falls."""

    @property
    def least_gain(self) -> float:
        """By which part of the rules' own the mean has to fall, to count."""

    @property
    def adds_up(self) -> bool:
        """Whether what a part of a model costs alone, it costs in the whole."""


@dataclass(frozen=True)
class PlanJudge:
    """By kernels and bytes of TensorRT-RTX's plan, which builds on a CPU and is deterministic.

    A kernel weighs as much as its part of all kernels, a byte as its part of all bytes.

    Attributes:
        options: for which shapes and SM.
        builds: builds by them.
        version: of what builds.
    """

    options: BuildOptions
    builds: Builds
    version: str

    @property
    def name(self) -> str:
        """`tensorrt_rtx 1.7.1, sm 89`."""
        return f"{RTX} {self.version}, plan" + (
            f", sm {self.options.sm}" if self.options.sm else ""
        )

    @property
    def least_gain(self) -> float:
        """None: the figures have no noise."""
        return 0.0

    @property
    def adds_up(self) -> bool:
        """Kernels and bytes do."""
        return True

    def figures(self, model: Path) -> Figures:
        """As `Judge`."""
        return figures_of(self.builds(model))

    def amounts(self, found: Figures) -> dict[str, float]:
        """Kernels, and megabytes of activations and weights."""
        return {"kernels": found.kernels, "MB": found.bytes / 1e6}


@dataclass(frozen=True)
class LatencyJudge:
    """By measured time: the median of several builds and runs.

    Attributes:
        builds: builds, runs and times; its report has `milliseconds`.
        version: of what builds.
        runs: how many builds and runs one figure takes.
        noise: part of the start's time below which a difference is none.
    """

    builds: Builds
    version: str
    runs: int = 3
    noise: float = 0.01

    @property
    def name(self) -> str:
        """`trtexec, latency of 3 runs`."""
        return f"{self.version}, latency of {self.runs} runs"

    @property
    def least_gain(self) -> float:
        """The noise of measuring."""
        return self.noise

    @property
    def adds_up(self) -> bool:
        """Time does not: a part alone is over before the GPU is busy."""
        return False

    def figures(self, model: Path) -> Figures:
        """As `Judge`; the time is the median of the runs, the rest is the first run's."""
        reports = [self.builds(model) for _ in range(self.runs)]
        times = [r.milliseconds for r in reports if r.milliseconds is not None]
        if len(times) < len(reports):
            raise EngineError(f"{self.version} says no kernel times of {model}")
        first = figures_of(reports[0])
        return replace(first, milliseconds=median(times), seconds=sum(r.seconds for r in reports))

    def amounts(self, found: Figures) -> dict[str, float]:
        """The time; kernels and bytes do not count."""
        return {"ms": math.inf if found.milliseconds is None else found.milliseconds}


def _finding(entry: Mapping[str, Any]) -> Finding:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()
    }
    return Finding(**values)


def figures_of(report: EngineReport) -> Figures:
    """What a report says a placement costs.

    Raises:
        EngineError: it lists no kernels, or their sizes are not known.
    """
    if not report.kernels:
        raise EngineError(f"{report.backend} {report.version} lists no kernels to search by")
    moved = report.activation_bytes
    if moved is None:
        raise EngineError(
            f"{report.backend} {report.version}: sizes of the plan's tensors are not known; declare"
            " one shape for each dynamic input (--shapes NAME:1x3x224x224)"
        )
    return Figures(
        kernels=len(report.kernels),
        activation_bytes=moved,
        weight_bytes=report.weight_bytes,
        seconds=report.seconds,
        milliseconds=report.milliseconds,
        findings=report.findings,
    )


def plan_judge(options: BuildOptions) -> PlanJudge:
    """The judge that needs no GPU.

    Raises:
        EngineError: TensorRT-RTX is not installed.
    """
    backend = find_backend(RTX)
    chosen = replace(options, backend=RTX)
    # It loads TensorRT once for all builds, and ends with the judge.
    place = BuildPlace(process=BuilderProcess())
    return PlanJudge(chosen, lambda model: build(model, None, chosen, place=place), backend.version)


def latency_judge(options: BuildOptions) -> LatencyJudge:
    """The judge that measures, with `trtexec` and the GPU that it runs on.

    Raises:
        EngineError: `trtexec` is not on the PATH.
    """
    program = find_trtexec()

    def builds(model: Path) -> EngineReport:
        engine = model.with_suffix(".engine")
        try:
            return build_with_trtexec(model, engine, replace(options, layers=False), times=True)
        finally:
            engine.unlink(missing_ok=True)

    return LatencyJudge(builds, Path(program).name)
