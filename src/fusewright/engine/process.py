"""TensorRT's builder in a process of its own: what crashes there is a line here."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from fusewright.engine.builder import BuildRequest, Progress
from fusewright.engine.parse_errors import RefusedNodes
from fusewright.errors import EngineError, OutputError, UsageError
from fusewright.graph.load import with_inner

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1));"
    " from fusewright.engine.worker import main; main()"
)
_ERRORS = {kind.__name__: kind for kind in (EngineError, OutputError, RefusedNodes, UsageError)}


@dataclass(frozen=True)
class Answer:
    """What the builder made.

    Attributes:
        backend, version: of what built.
        engine_bytes: size of the serialized engine.
        timing_cache: contents after the build, where one was given.
        kernels: the rows of its log that list kernels.
        sizes: inputs that took the values of `BuildRequest.sizes`.
    """

    backend: str
    version: str
    engine_bytes: int
    timing_cache: bytes | None
    kernels: str
    sizes: Sequence[str] = ()


class BuilderProcess:
    """One process that builds, one model after another; started when it is first needed.

    It ends with this object, with `close`, or when this process ends, however that comes.
    """

    def __init__(self) -> None:
        """Starts nothing."""
        self._process: subprocess.Popen[str] | None = None
        self._end: Callable[[], object] = lambda: None

    def start(self) -> None:
        """Starts it where it does not run: it loads while the caller does something else."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
            )
            self._end = weakref.finalize(self, _ended, self._process)

    def close(self) -> None:
        """Ends it; what it was at work on is dropped."""
        self._end()
        self._process = None

    def build(
        self,
        backend: str | None,
        request: BuildRequest,
        engine: Path | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        """Builds, and writes the engine to a file, where there is a name for one.

        An interruption ends the process, and goes on.

        Raises:
            UsageError, EngineError, OutputError: as `Builder`, or TensorRT's code crashed.
        """
        self.start()
        try:
            return self._answer(_line(backend, request, engine), progress, request)
        except (EngineError, OutputError, UsageError):
            raise
        except BaseException:
            self.close()
            raise

    def _answer(self, line: str, progress: Progress | None, request: BuildRequest) -> Answer:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        who, step, died = "TensorRT", "started", ""
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError:  # it is gone; its output says why
            pass
        for text in process.stdout:
            told = json.loads(text)
            if "progress" in told and progress is not None:
                progress(*told["progress"])
            who, step = told.get("who", who), told.get("step", step)
            died = told.get("died", died)
            if "error" in told:
                raise _error(*told["error"])
            if "done" in told:
                done = told["done"]
                times = done["timing_cache"]
                return Answer(
                    **{**done, "timing_cache": None if times is None else base64.b64decode(times)}
                )
        code = process.wait()
        self.close()
        how = died or _how_it_ended(code)
        cause = likely_cause(request.model)
        because = f"; {cause}" if cause else ""
        raise EngineError(f"{request.shown}: {who} crashed ({how}) while it {step}{because}")


def likely_cause(model: Path) -> str | None:
    """What in a model is known to crash TensorRT's native code, in words; None where nothing is."""
    proto = onnx.load(str(model), load_external_data=False)
    nodes = (*proto.graph.node, *(node for f in proto.functions for node in f.node))
    return next(filter(None, map(_known_cause, with_inner(nodes))), None)


def _known_cause(node: onnx.NodeProto) -> str | None:
    name = node.name or next(iter(node.output), "")
    if node.op_type == "Attention" and len(set(node.input[:3])) < 3:
        # TensorRT-RTX 1.7.1.
        return (
            f"node '{name}' (Attention) reads one tensor as two of q, k and v, which it crashes on:"
            " `fusewright optimize` writes it as MatMul, Softmax, MatMul, which it takes"
        )
    if not any(node.output):
        return f"node '{name}' ({node.op_type}) has no output"
    return None


def _line(backend: str | None, request: BuildRequest, engine: Path | None) -> str:
    cache = request.timing_cache
    plain = {
        "backend": backend,
        "model": str(request.model),
        "shown": request.shown,
        "profiles": request.profiles,
        "sizes": dict(request.sizes),
        "formats": sorted(request.formats),
        "sm": request.sm,
        "timing_cache": None if cache is None else base64.b64encode(cache).decode(),
        "refit": request.refit,
        "strip_weights": request.strip_weights,
        "engine": None if engine is None else str(engine),
    }
    return json.dumps(plain) + "\n"


def _error(kind: str, text: str, details: Iterable[str]) -> Exception:
    error = _ERRORS.get(kind, EngineError)(text)
    error.details = tuple(details)
    return error


def _how_it_ended(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def _ended(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
