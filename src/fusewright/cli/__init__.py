"""The command line: one file per subcommand; what is heavy loads when a command runs."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

# A command is one short process, and a graph's nodes and tensors are cycles that stay: looking for
# garbage among them as often as Python does by default takes a tenth of a small job's time.
_ALLOCATIONS = 500_000


def run_and_exit() -> NoReturn:
    """The program: runs the command line of the process and ends it."""
    gc.set_threshold(_ALLOCATIONS, *gc.get_threshold()[1:])
    code = main()
    if code == 0:
        # All is written: a signal while Python shuts down must not make a failure of it.
        for name in {"SIGINT", "SIGTERM", "SIGHUP"}.intersection(dir(signal)):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a wrong use, 130 interrupted, 143 terminated.
    """
    try:
        from fusewright.cli.edge import run
    except KeyboardInterrupt:
        # What prints otherwise is still being imported.
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    return run(arguments)
