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
    from fusewright.engine.build import BuildOptions, BuildPlace
    from fusewright.engine.ranges import ShapeRange
    from fusewright.engine.report import EngineReport

_TRTEXEC = "trtexec"
_NEWEST = "11"
_SPELLING = "As trtexec takes it, NAME:1x3x224x224,NAME:…"


def build(
    model: p.Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="ENGINE",
            help="The engine, with ENGINE.layers.json beside it; written whole or not at all.",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="NAME",
            help="tensorrt, tensorrt_rtx, or trtexec from the PATH; default the best that is here.",
        ),
    ] = None,
    shapes: p.Shapes = None,
    min_shapes: Annotated[
        str | None, typer.Option("--minShapes", metavar="SHAPES", help=_SPELLING)
    ] = None,
    opt_shapes: Annotated[
        str | None, typer.Option("--optShapes", metavar="SHAPES", help="Likewise.")
    ] = None,
    max_shapes: Annotated[
        str | None, typer.Option("--maxShapes", metavar="SHAPES", help="Likewise.")
    ] = None,
    sm: Annotated[
        int | None,
        typer.Option("--sm", metavar="N", help="Compute capability to build for, such as 89."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            "--timing-cache", metavar="FILE", help="Kernel timings, read and written; not for RTX."
        ),
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Weights can be replaced in the engine.")
    ] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="An engine without weights, refitted later.")
    ] = False,
    times: Annotated[
        bool, typer.Option("--times", help="With trtexec: run the engine and time each kernel.")
    ] = False,
    print_trtexec: Annotated[
        bool, typer.Option("--print-trtexec", help="Only print the trtexec line that builds it.")
    ] = False,
    trtexec_version: Annotated[
        str | None,
        typer.Option(
            "--trtexec-version", metavar="V", help="Of that line: 8.6, 10 or 11 (default)."
        ),
    ] = None,
    json_file: p.JsonFile = None,
    verbose: p.Verbose = False,
    quiet: p.Quiet = False,
) -> None:
    """Build an engine and show its kernels by group."""
    from fusewright.cli.shapes import all_shapes
    from fusewright.cli.targets import check_targets, write_json
    from fusewright.cli.terminal import Terminal
    from fusewright.engine.build import LAYERS_SUFFIX, BuildOptions, BuildPlace
    from fusewright.graph.save import Pending

    terminal = Terminal(verbose, quiet, writes=True)
    ranges, typed = all_shapes(shapes, (min_shapes, opt_shapes, max_shapes))
    options = BuildOptions(
        backend=backend,
        shapes=ranges,
        typed=typed,
        sm=sm,
        timing_cache=timing_cache,
        refit=refit,
        strip_weights=strip_weights,
    )
    if print_trtexec:
        _refuse_idle(options, {"--times": times, "--json": json_file is not None})
        version = _NEWEST if trtexec_version is None else trtexec_version
        terminal.data(trtexec_line(model, output, options, version))
        return
    if trtexec_version is not None:
        raise UsageError("--trtexec-version goes with --print-trtexec")
    if output is None:
        raise UsageError("no output: give -o ENGINE (or --print-trtexec for the command alone)")
    if times and backend != _TRTEXEC:
        raise UsageError("--times goes with --with trtexec, which runs the engine")
    layers = Path(f"{output}{LAYERS_SUFFIX}")
    written = {"--output": output, "the report of --output": layers, "--json": json_file}
    check_targets({**written, "--timing-cache": timing_cache}, {"the input file": model})
    with Pending() as files:
        place = BuildPlace(pending=files)
        if backend == _TRTEXEC:
            report = _run_trtexec(terminal, model, output, options, times, place)
        else:
            report = build_and_show(terminal, model, output, options, place)
        if json_file is not None:
            write_json(report.to_dict(), json_file, files)
        terminal.flush()
        files.commit()


def _refuse_idle(options: BuildOptions, others: Mapping[str, bool]) -> None:
    """Refuses options that say nothing to trtexec's line; `others` maps names to whether given."""
    if options.sm is not None:
        raise UsageError("--sm: trtexec builds for the GPU it runs on")
    other = options.backend not in (None, _TRTEXEC)
    given = [name for name, is_given in {"--with": other, **others}.items() if is_given]
    if given:
        raise UsageError(f"--print-trtexec only prints a line: {given[0]} cannot be added")


def build_and_show(
    terminal: Terminal, model: Path, engine: Path, options: BuildOptions, place: BuildPlace
) -> EngineReport:
    """Builds and prints the summary; without a TensorRT, prints the trtexec line and fails.

    Raises:
        FusewrightError: as `fusewright.build`.
    """
    from fusewright.cli.build_progress import BuildBar
    from fusewright.engine.build import build as run

    try:
        with BuildBar(terminal) as bar:
            report = run(model, engine, options, bar, place)
    except EngineError:
        if not _can_build(options.backend):
            line = trtexec_line(model, engine, options, shown=place.shown)
            terminal.data(line)
        raise
    show(terminal, report)
    return report


def show(terminal: Terminal, report: EngineReport) -> None:
    """Prints what an engine became."""
    from fusewright.report.engine_tables import engine_listing

    terminal.show(engine_listing(report, terminal.width, terminal.verbose))


def trtexec_line(
    model: Path,
    engine: Path | None,
    options: BuildOptions,
    version: str = _NEWEST,
    shown: str | None = None,
) -> str:
    """The shell line that builds `model` where TensorRT's own tools are.

    Raises:
        ModelError: the file is not a whole ONNX model.
        UsageError: shapes that do not fit it, a version there is no line for, or an option that
            version lacks.
        EngineError: an input with dynamic dimensions beside the batch and no shapes, or a file
            that this version does not read.
    """
    from fusewright.engine.profiles import choose_profiles
    from fusewright.engine.trtexec import (
        TrtexecOptions,
        check_version,
        shell_line,
        trtexec_command,
    )
    from fusewright.engine.types import formats_of
    from fusewright.graph.load import read_source

    source = read_source(model)
    check_version(source.proto, version)
    profiles: Mapping[str, ShapeRange]
    profiles, _ = choose_profiles(source.interface.inputs, options.shapes, options.typed)
    asked = TrtexecOptions(
        version=version,
        engine=engine,
        timing_cache=options.timing_cache,
        refit=options.refit,
        strip_weights=options.strip_weights,
        formats=formats_of(source.proto),
    )
    return shell_line(trtexec_command(Path(shown or model), profiles, asked))


def _run_trtexec(
    terminal: Terminal,
    model: Path,
    engine: Path,
    options: BuildOptions,
    times: bool,
    place: BuildPlace,
) -> EngineReport:
    from fusewright.engine.trtexec_run import build_with_trtexec

    said = terminal.tell if terminal.verbose else None
    report = build_with_trtexec(model, engine, options, times, said, place.pending)
    show(terminal, report)
    return report


def _can_build(backend: str | None) -> bool:
    from fusewright.engine.backend import find_backend

    try:
        find_backend(backend)
    except EngineError:
        return False
    return True
