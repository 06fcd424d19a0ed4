"""The process that TensorRT runs in: requests come as lines of JSON, answers go back as such.

TensorRT's native code ends the process where it meets what it did not foresee, prints past its
logger, and cannot be interrupted. Here all that stays away from the process that the user sees.
Nothing but the standard library and TensorRT is imported, so that it starts fast.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from fusewright.engine.backend import BuildLog, find_backend
from fusewright.engine.builder import Builder, BuildRequest
from fusewright.engine.ranges import ShapeRange
from fusewright.errors import FusewrightError, OutputError

_STDOUT, _STDERR = 1, 2
# The rows of the list of kernels; what else the log says in VERBOSE can be a hundred times as much.
_ROW = "LayerType: "


def main() -> None:
    """Answers requests until the other side closes the pipe, and ends with it."""
    # The terminal sends Ctrl-C to both: the other process decides, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = _Answers(os.fdopen(os.dup(_STDOUT), "w", encoding="utf-8"))
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), _STDOUT)
        os.dup2(nowhere.fileno(), _STDERR)
    sys.excepthook = lambda kind, error, trace: answers.send(died=f"{kind.__name__}: {error}")
    requests: list[str] = []
    come = threading.Semaphore(0)

    def listen() -> None:
        for line in sys.stdin:
            requests.append(line)
            come.release()
        os._exit(0)  # native code may be at work, and nobody waits for it

    threading.Thread(target=listen, daemon=True).start()
    while True:
        come.acquire()
        _answer(json.loads(requests.pop(0)), answers)


class _Answers:
    """Lines to the other process, from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, **answer: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps(answer) + "\n")
            self._stream.flush()


def _answer(request: dict[str, Any], answers: _Answers) -> None:
    try:
        answers.send(done=_built(request, answers))
    except FusewrightError as error:
        answers.send(error=[type(error).__name__, str(error), list(error.details)])


def _ranges(given: dict[str, list[list[int]]]) -> dict[str, ShapeRange]:
    return {n: (tuple(a), tuple(b), tuple(c)) for n, (a, b, c) in given.items()}


def _built(request: dict[str, Any], answers: _Answers) -> dict[str, Any]:
    backend = find_backend(request["backend"])
    log = BuildLog(backend.module)
    builder = Builder(backend, log, lambda step: answers.send(step=step))
    answers.send(who=builder.name)
    cache = request["timing_cache"]
    asked = BuildRequest(
        model=Path(request["model"]),
        shown=request["shown"],
        profiles=_ranges(request["profiles"]),
        sizes=_ranges(request["sizes"]),
        formats=frozenset(request["formats"]),
        sm=request["sm"],
        timing_cache=None if cache is None else base64.b64decode(cache),
        refit=request["refit"],
        strip_weights=request["strip_weights"],
    )
    builder.check(asked)
    built = builder.run(asked, lambda *told: answers.send(progress=told))
    engine = memoryview(built.engine)
    if request["engine"] is not None:
        try:
            Path(request["engine"]).write_bytes(engine)
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror or error}") from error
    times = built.timing_cache
    return {
        "backend": backend.name,
        "version": backend.version,
        "engine_bytes": engine.nbytes,
        "sizes": built.sizes,
        "timing_cache": None if times is None else base64.b64encode(times).decode(),
        "kernels": "\n".join(text for _, text in log.messages if _ROW in text),
    }
