"""The edge of the command line: every way out of a command becomes one line and an exit code."""

from __future__ import annotations

import io
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

from fusewright.cli.app import PROGRAM, app
from fusewright.errors import FusewrightError, Stopped, one_line

# A terminal that is closed sends SIGHUP; Windows has none.
_ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
# Recent Typer brings a Click of its own, older ones use the package: this is either's class.
_WrongUse: Any = typer.BadParameter.__base__


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; see `fusewright.cli.main`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Accepted anywhere: it is added to a line that failed, and that is its end.
    debug = "--debug" in given
    given = [text for text in given if text != "--debug"]
    _never_fail_on_characters()
    quiet = "-q" in given or "--quiet" in given
    with _signals_raise() as stops, _warnings_as_notes(quiet):
        try:
            return _invoke(given)
        except Stopped as stop:
            return _end(stop.word, stop.exit_code)
        except typer.Abort:
            return _end("interrupted", 130)
        except Exception as error:  # noqa: BLE001 - the edge
            # One that comes while a C++ module loads is an ImportError by now.
            if stops:
                return _end(stops[0].word, stops[0].exit_code)
            if debug:
                traceback.print_exc()
            return _end(*_told(error), getattr(error, "details", ()))


def _invoke(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    if not arguments:
        command.main(["--help"], prog_name=PROGRAM, standalone_mode=False)
        return 2
    code = command.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    return code if isinstance(code, int) else 0


def _told(error: Exception) -> tuple[str, int]:
    """The line that says what went wrong, and the exit code."""
    if isinstance(error, FusewrightError):
        return f"error: {error}", error.exit_code
    if isinstance(error, _WrongUse):
        context: Any = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return f"error: {error.format_message()}{hint}", 2
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        return f"error: {where}{error.strerror}", 1
    if isinstance(error, MemoryError):
        return "error: out of memory", 1
    text = str(error) or "no message"
    return (
        f"error: {type(error).__name__}: {text} (a bug in Fusewright, please report it;"
        " --debug shows the traceback)"
    ), 1


def _end(line: str, code: int, details: Sequence[str] = ()) -> int:
    """Says why it ends; `details` are lines below, such as one for each node refused."""
    for text in (line, *(f"  {detail}" for detail in details)):
        indent = text[: len(text) - len(text.lstrip())]
        print(indent + one_line(" ".join(text.split())), file=sys.stderr)  # noqa: T201
    return code


def _never_fail_on_characters() -> None:
    """A name that the terminal's encoding lacks is printed escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _warnings_as_notes(quiet: bool) -> Iterator[None]:
    """Python's warnings, of libraries and of a user's reader, are one line each, or none."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if not quiet:
            print(f"note: {one_line(str(message))}", file=sys.stderr)  # noqa: T201

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _signals_raise() -> Iterator[list[Stopped]]:
    """What ends the process unwinds the stack, so that what was begun is cleaned up.

    Yields a list of what was raised so, for where it comes out as something else. A signal that
    the caller has ignored stays so: `nohup`, a job in a script's background.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    stops: list[Stopped] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stops.append(Stopped(number))
        raise stops[-1]

    heard = [n for n in _ENDING if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
