"""Which TensorRT is installed: `tensorrt` and `tensorrt_rtx` share one Python API."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fusewright.errors import EngineError, UsageError

_INSTALL = {
    "tensorrt": "pip install 'fusewright[tensorrt]'",
    "tensorrt_rtx": "pip install 'fusewright[rtx]'",
}

# VERBOSE messages are strings kept until the build is over; the list of kernels is one of them.
_PROBLEMS = ("INTERNAL_ERROR", "ERROR")


@dataclass(frozen=True)
class Backend:
    """One importable and usable TensorRT: `tensorrt` (needs a GPU) or `tensorrt_rtx`."""

    name: str
    version: str
    module: ModuleType

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX, which builds ahead of time without a GPU."""
        return self.name == "tensorrt_rtx"


def available_backends() -> tuple[Backend, ...]:
    """The backends that can build here, best first: `tensorrt` (with a GPU), `tensorrt_rtx`."""
    found = []
    for name in _INSTALL:
        with contextlib.suppress(EngineError):
            found.append(_usable(name))
    return tuple(found)


def find_backend(name: str | None = None) -> Backend:
    """The backend called `name`, or without a name the best one that can build here.

    Raises:
        UsageError: there is no backend of that name.
        EngineError: it is not installed, or it cannot build on this machine.
    """
    if name is not None:
        key = name.replace("-", "_")
        if key not in _INSTALL:
            raise UsageError(
                f"no backend {name!r}: choose tensorrt or tensorrt_rtx (and on the command line"
                " trtexec)"
            )
        return _usable(key)
    reasons = []
    for candidate in _INSTALL:
        try:
            return _usable(candidate)
        except EngineError as error:
            reasons.append(str(error))
    raise EngineError("nothing to build an engine with: " + "; ".join(reasons))


class BuildLog:
    """What a builder said; `logger` is the object to hand to TensorRT."""

    def __init__(self, trt: ModuleType) -> None:
        """Makes a logger of `trt`'s own class that keeps every message and prints none."""
        self.messages: list[tuple[str, str]] = []
        self.logger = _logger(trt, self.messages)

    @property
    def text(self) -> str:
        """All messages, one below the other."""
        return "\n".join(message for _, message in self.messages)

    def problems(self) -> list[str]:
        """The error messages, first to last."""
        return [message for severity, message in self.messages if severity in _PROBLEMS]


def _logger(trt: Any, messages: list[tuple[str, str]]) -> Any:
    # The base class exists only once TensorRT is imported, hence a class in a function.
    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.append((severity.name, message))

    return Collector()


def _usable(name: str) -> Backend:
    if importlib.util.find_spec(name) is None:
        raise EngineError(f"{name} is not installed: {_INSTALL[name]}")
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"{name} is installed but does not load: {error}") from error
    backend = Backend(name, str(module.__version__), module)
    _require_builder(backend)
    return backend


def _require_builder(backend: Backend) -> None:
    """Full TensorRT cannot even make a builder without a GPU and driver; RTX can."""
    log = BuildLog(backend.module)
    try:
        builder = backend.module.Builder(log.logger)
    except (TypeError, RuntimeError) as error:
        reason = (log.problems() or [str(error)])[0].splitlines()[0]
        raise EngineError(
            f"{backend.name} {backend.version} cannot build here (it needs an NVIDIA GPU and "
            f"driver): {reason}"
        ) from error
    del builder
