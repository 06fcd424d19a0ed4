"""`fusewright inspect`: the groups of a model, their contracts, decisions and reasons."""

from __future__ import annotations

from fusewright.cli import parameters as p


def inspect(
    model: p.Model,
    exclude: p.Exclude = None,
    include: p.Include = None,
    precision: p.Precision = None,
    target: p.Target = "tensorrt",
    group_precision: p.GroupPrecision = None,
    json_flag: p.JsonFlag = False,
    verbose: p.Verbose = False,
) -> None:
    """Show the groups of a model with decisions and reasons.

    Nothing is run or written. In a quantized file the decisions are those found in it.
    """
    from fusewright.cli.targets import json_text
    from fusewright.cli.terminal import StageLines, Terminal
    from fusewright.pipeline import Trace
    from fusewright.pipeline import inspect as run
    from fusewright.report.plan_tables import misses_listing, plan_listing

    terminal = Terminal(verbose)
    with StageLines(terminal, shown=verbose) as watcher:
        trace = Trace(watcher)
        plan = run(
            model,
            trace=trace,
            exclude=tuple(exclude or ()),
            include=tuple(include or ()),
            precision=precision,
            target=target,
            group_precision=tuple(group_precision or ()),
        )
    if json_flag:
        terminal.data(json_text(plan.to_dict()))
        return
    terminal.show(plan_listing(plan, terminal.width, verbose))
    if verbose:
        misses = [(e.name, e.where, e.detail) for e in trace if e.what == "miss"]
        terminal.show(misses_listing(misses, terminal.width))
