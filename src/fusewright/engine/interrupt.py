"""Long work that Ctrl-C ends: it runs beside the main thread, which alone receives signals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Signals reach Python between two waits.
_WAIT = 0.1


def run_stoppable(work: Callable[[threading.Event], T]) -> T:
    """Runs `work` in a thread and returns its result, or raises what it raised.

    TensorRT calls back into Python while it builds. An exception that a signal raises inside such a
    callback is lost in its C++ code, so callbacks must run where no signal arrives. When the main
    thread is interrupted, the event given to `work` is set, and the interruption goes on once
    `work` has ended.
    """
    stop, done = threading.Event(), threading.Event()
    outcome: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            if not stop.is_set():
                outcome.append(work(stop))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)
        done.set()

    thread = threading.Thread(target=body, name="fusewright-build")
    try:
        thread.start()
        # Not `join`: interrupted, it takes the thread for ended (Python before 3.13).
        while not done.wait(_WAIT):
            pass
    finally:
        stop.set()
        # Interrupted inside `start`, it may not run yet, and will end at once when it does.
        while not done.wait(_WAIT) and thread.ident is not None:
            pass
    if errors:
        raise errors[0]
    return outcome[0]
