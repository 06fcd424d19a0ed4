"""`fusewright report`: what an engine became, from its layer file; two of them side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusewright.cli import parameters as p
from fusewright.errors import UsageError


def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="LAYERS.json [LAYERS.json]",
            help="ENGINE.layers.json of build, or a file of trtexec --exportLayerInfo; two are"
            " compared.",
            show_default=False,
        ),
    ],
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            metavar="MODEL.onnx",
            help="The file that was built, for a layer file of trtexec; one for each.",
        ),
    ] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            "--profile",
            metavar="TIMES.json",
            help="Its trtexec --exportProfile, for times; one for each.",
        ),
    ] = None,
    json_flag: p.JsonFlag = False,
    verbose: p.Verbose = False,
) -> None:
    """Show which kernels each group became, and what could be better; or compare two engines."""
    from fusewright.cli.build import show
    from fusewright.cli.targets import json_text
    from fusewright.cli.terminal import Terminal
    from fusewright.engine.compare import compare_engines
    from fusewright.engine.read import read_report
    from fusewright.report.engine_comparison import comparison_listing

    if len(files) > 2:
        raise UsageError(f"{len(files)} layer files: give one, or two to compare")
    terminal = Terminal(verbose)
    reports = [
        read_report(
            path, _at(model, index, files, "--model"), _at(profile, index, files, "--profile")
        )
        for index, path in enumerate(files)
    ]
    if len(reports) == 1:
        if json_flag:
            terminal.data(json_text(reports[0].to_dict()))
        else:
            show(terminal, reports[0])
        return
    comparison = compare_engines(*reports)
    if json_flag:
        terminal.data(json_text(comparison.to_dict()))
        return
    first, second = (path.name.removesuffix(".layers.json") for path in files)
    names = (first, second) if first != second else ("first", "second")
    terminal.show(comparison_listing(comparison, names, verbose))


def _at(given: list[Path] | None, index: int, files: list[Path], option: str) -> Path | None:
    """The value of a repeated option that belongs to a file; one alone serves a single file."""
    if not given:
        return None
    if len(given) != len(files):
        raise UsageError(f"{option}: give one for each of the {len(files)} layer files")
    return given[index]
