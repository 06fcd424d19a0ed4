"""`fusewright compare`: how far two models are apart on the same data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusewright.cli import parameters as p
from fusewright.errors import UsageError, VerifyError

if TYPE_CHECKING:
    from fusewright.verify import Comparison

_TWIN = (
    "measured on an FP32 twin that rounds after each op: onnxruntime's CPU cannot run the file so"
)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.onnx", help="The reference.")],
    second: Annotated[Path, typer.Argument(metavar="B.onnx", help="The model to judge.")],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="As optimize's --calib takes it."),
    ] = None,
    random_data: p.RandomData = False,
    samples: p.Samples = None,
    shapes: p.Shapes = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(
            "--min-sqnr",
            metavar="DB",
            help="Fail when an output of floats is below, in dB, over all samples or in the median"
            " sample.",
        ),
    ] = None,
    mean: p.Mean = None,
    std: p.Std = None,
    size: p.Size = None,
    layout: p.Layout = None,
    color: p.Color = None,
    scale: p.Scale = None,
    json_flag: p.JsonFlag = False,
    quiet: p.Quiet = False,
) -> None:
    """Compare the outputs of two models on the same data."""
    from fusewright.cli.parsing import open_data, parse_images, parse_shapes
    from fusewright.cli.targets import json_text
    from fusewright.cli.terminal import Terminal
    from fusewright.graph.load import read_source
    from fusewright.pipeline import compare as run
    from fusewright.pipeline.inspection import needs_twin
    from fusewright.report.result_tables import accuracy_table, measured_over, selection_lines
    from fusewright.report.text import section

    terminal = Terminal(quiet=quiet)
    if min_sqnr is not None and math.isnan(min_sqnr):
        raise UsageError("--min-sqnr nan: is not a number")
    if shapes and not random_data:
        raise UsageError("--shapes is for --random-data; samples have shapes of their own")
    count = (samples or p.RANDOM_SAMPLES) if random_data else None
    source = open_data(data, "--data", count, parse_shapes(shapes))
    images = parse_images((mean, std, size, layout, color, scale), data)
    comparison = run(first, second, source, samples, images)
    if json_flag:
        terminal.data(json_text(_plain(first, second, comparison)))
    else:
        title = f"{second} against {first}{measured_over(comparison)}"
        twin = [_TWIN] * needs_twin(read_source(first), read_source(second))
        table = accuracy_table(comparison, terminal.width - 2)
        terminal.show(section(title, table, *selection_lines(comparison), *twin))
    if min_sqnr is not None:
        _require(comparison, min_sqnr)


def _plain(first: Path, second: Path, comparison: Comparison) -> dict[str, Any]:
    selections = [selected.to_dict() for selected in comparison.selections]
    found = {"outputs": comparison.to_dict(), "selections": selections}
    return {"first": str(first), "second": str(second), **found}


def _require(comparison: Comparison, least: float) -> None:
    """One loud sample is most of the figure over all of them: the median has to hold as well."""
    from fusewright.report.result_tables import described
    from fusewright.verify.distance import decibels

    rated = [output for output in comparison.rated if output.sqnr_db is not None]
    if not rated:
        raise UsageError("--min-sqnr: the models have no output of floats")
    for output in rated:
        whole, median = output.sqnr_db or 0.0, decibels(output.median)
        found, where = (whole, "") if whole < least else (median, " in the median sample")
        if not found >= least:
            raise VerifyError(
                f"{described(output)} has {found:.1f} dB SQNR{where}, --min-sqnr asks for {least:g}"
            )
