"""The program: its name, its version and its subcommands."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from fusewright import __version__
from fusewright.cli.build import build
from fusewright.cli.compare import compare
from fusewright.cli.inspect import inspect
from fusewright.cli.optimize import optimize
from fusewright.cli.plan import plan
from fusewright.cli.report import report
from fusewright.errors import Stopped

PROGRAM = "fusewright"

app = typer.Typer(
    name=PROGRAM,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """A reader's own KeyboardInterrupt ends a command as Ctrl-C does; Click would add a line."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise Stopped(signal.SIGINT) from error

    return run


for command in (optimize, inspect, plan, compare, build, report):
    app.command(command.__name__)(_interruptible(command))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="With any command: show the traceback of an error.")
    ] = False,
) -> None:
    """ONNX in, fused and quantized ONNX and TensorRT engine out, with proof at every step."""
