"""`fusewright build`: an engine from an ONNX file, and what became of each group in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusewright.cli import parameters as p
from fusewright.errors import EngineError, UsageError

if TYPE_CHECKING:
    from fusewright.cli.terminal import Terminal
    from fusewright.engine.build import BuildOptions
    from fusewright.engine.profiles import ShapeRange
    from fusewright.engine.report import EngineReport


def build(
    model: p.Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="ENGINE", help="The engine; written whole or not at all."
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--with", metavar="NAME", help="tensorrt or tensorrt_rtx; default the best."),
    ] = None,
    shapes: p.Shapes = None,
    sm: Annotated[
        int | None,
        typer.Option("--sm", metavar="N", help="Compute capability to build for, such as 89."),
    ] = None,
    print_trtexec: Annotated[
        bool, typer.Option("--print-trtexec", help="Only print the trtexec line that builds it.")
    ] = False,
    json_file: p.JsonFile = None,
    verbose: p.Verbose = False,
    quiet: p.Quiet = False,
) -> None:
    """Build an engine and show its kernels by group."""
    from fusewright.cli.parsing import parse_shapes
    from fusewright.cli.targets import check_targets, write_json
    from fusewright.cli.terminal import Terminal
    from fusewright.engine.build import BuildOptions

    terminal = Terminal(verbose, quiet)
    ranges = parse_shapes(shapes)
    if print_trtexec:
        terminal.data(trtexec_line(model, output, ranges))
        return
    if output is None:
        raise UsageError("no output: give -o ENGINE (or --print-trtexec for the command alone)")
    check_targets({"--output": output, "--json": json_file}, {"the input file": model})
    options = BuildOptions(backend=backend, shapes=ranges, sm=sm)
    report = build_and_show(terminal, model, output, options)
    if json_file is not None:
        write_json(report.to_dict(), json_file)


def build_and_show(
    terminal: Terminal, model: Path, engine: Path, options: BuildOptions
) -> EngineReport:
    """Builds and prints the summary; without a TensorRT, prints the trtexec line and fails.

    Raises:
        FusewrightError: as `fusewright.build`.
    """
    from fusewright.engine.build import build as run
    from fusewright.report.engine_tables import engine_listing

    try:
        report = run(model, engine, options)
    except EngineError:
        if not _can_build(options.backend):
            terminal.data(trtexec_line(model, engine, options.shapes))
        raise
    kinds = group_kinds(model)
    terminal.show(engine_listing(report, kinds, terminal.width, terminal.verbose))
    return report


def trtexec_line(model: Path, engine: Path | None, shapes: Mapping[str, ShapeRange]) -> str:
    """The shell line that builds `model` where TensorRT's own tools are.

    Raises:
        ModelError: the file is not a whole ONNX model.
        UsageError: shapes that do not fit it.
        EngineError: an input with dynamic dimensions beside the batch and no shapes.
    """
    from fusewright.engine.profiles import choose_profiles
    from fusewright.engine.trtexec import TrtexecOptions, shell_line, trtexec_command
    from fusewright.graph.load import read_source

    profiles, _ = choose_profiles(read_source(model).interface.inputs, shapes)
    return shell_line(trtexec_command(model, profiles, TrtexecOptions(engine=engine)))


def group_kinds(model: Path) -> dict[str, str]:
    """Name of each group call of a collapsed file → its kind."""
    from fusewright.graph.load import read_source
    from fusewright.groups import KINDS
    from fusewright.plan.collapse import DOMAIN

    # A kind with several structures has several bodies: ConvBNAct, ConvBNAct_2.
    calls = [n for n in read_source(model).proto.graph.node if n.domain == DOMAIN]
    return {
        call.name: call.op_type if call.op_type in KINDS else call.op_type.rpartition("_")[0]
        for call in calls
    }


def _can_build(backend: str | None) -> bool:
    from fusewright.engine.backend import find_backend

    try:
        find_backend(backend)
    except EngineError:
        return False
    return True
