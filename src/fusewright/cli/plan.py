"""`fusewright plan`: the decisions as a file that a person edits and `optimize` applies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusewright.cli import parameters as p


def plan(
    model: p.Model,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PLAN.yaml", help="Written whole or not at all."),
    ],
    exclude: p.Exclude = None,
    include: p.Include = None,
    precision: p.Precision = None,
    target: p.Target = "tensorrt",
    group_precision: p.GroupPrecision = None,
    verbose: p.Verbose = False,
    quiet: p.Quiet = False,
) -> None:
    """Write the decisions to a file for `optimize --plan`."""
    from fusewright.cli.targets import check_targets
    from fusewright.cli.terminal import StageLines, Terminal
    from fusewright.graph.save import Pending
    from fusewright.pipeline import inspect as run
    from fusewright.plan.file import write_plan

    terminal = Terminal(verbose, quiet, writes=True)
    check_targets({"--output": output}, {"the input file": model})
    with StageLines(terminal, shown=verbose) as watcher:
        made = run(
            model,
            watcher,
            exclude=tuple(exclude or ()),
            include=tuple(include or ()),
            precision=precision,
            target=target,
            group_precision=tuple(group_precision or ()),
        )
    quantized = sum(group.is_quantized for group in made.groups)
    with Pending() as files:
        write_plan(made, output, files)
        terminal.line(
            f"{output}: {len(made.groups)} groups, {quantized} quantized,"
            f" {len(made.unclaimed)} heavy ops unclaimed"
        )
        terminal.flush()
        files.commit()
