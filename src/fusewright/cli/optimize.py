"""`fusewright optimize`: an ONNX file in, a verified quantized one out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusewright.cli import parameters as p
from fusewright.errors import EngineError, UsageError

if TYPE_CHECKING:
    from fusewright.cli.terminal import Terminal
    from fusewright.graph.save import Pending
    from fusewright.pipeline import Result


def optimize(
    model: p.Model,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT.onnx", help="Written whole or not at all."),
    ],
    calib: Annotated[
        str | None,
        typer.Option(
            "--calib",
            metavar="DATA",
            help="Calibration data: .npz by input name, .npy, a folder of either, of images or of"
            " test_data_set_*, or module:name of a reader.",
        ),
    ] = None,
    random_data: p.RandomData = False,
    samples: p.Samples = None,
    precision: p.Precision = None,
    target: p.Target = "tensorrt",
    group_precision: p.GroupPrecision = None,
    io_types: p.IoTypes = "keep",
    per_tensor_weights: Annotated[
        bool, typer.Option("--per-tensor-weights", help="One scale a weight, not one a channel.")
    ] = False,
    int4_method: p.Int4Method = None,
    block_size: p.BlockSize = None,
    method: Annotated[
        str, typer.Option("--method", help="mse, minmax, percentile or entropy.")
    ] = "mse",
    percentile: Annotated[
        float | None,
        typer.Option("--percentile", help="Of --method percentile, in percent; default 99.99."),
    ] = None,
    smooth: Annotated[
        str,
        typer.Option(
            "--smooth",
            metavar="ALPHA",
            help="SmoothQuant, outliers of activations moved into weights: auto, off, or 0 to 1.",
        ),
    ] = "auto",
    shapes: p.Shapes = None,
    exclude: p.Exclude = None,
    include: p.Include = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="PLAN.yaml", help="Apply the decisions of a plan file."),
    ] = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="Leave groups as nodes; no local functions.")
    ] = False,
    pool_head: Annotated[
        bool,
        typer.Option("--pool-head", help="Turn Flatten, Linear behind a pool into a 1x1 Conv."),
    ] = False,
    int8_residual: Annotated[
        bool,
        typer.Option("--int8-residual", help="A transformer's residual stream in INT8 too."),
    ] = False,
    search: Annotated[
        str,
        typer.Option(
            "--search",
            metavar="BY",
            help="Try other placements and keep the best: plan (kernels and bytes of TensorRT-RTX's"
            " plan, on a CPU), latency (measured by trtexec), or off.",
        ),
    ] = "off",
    search_budget: Annotated[
        float | None,
        typer.Option(
            "--search-budget", metavar="SECONDS", help="That its builds may take; default 600."
        ),
    ] = None,
    search_journal: Annotated[
        Path | None,
        typer.Option(
            "--search-journal",
            metavar="FILE",
            help="Where its trials are kept for a next run; default OUT.onnx.search.jsonl.",
        ),
    ] = None,
    verify_samples: Annotated[
        int, typer.Option("--verify-samples", help="Samples that every rewrite is proven on.")
    ] = 4,
    strict: Annotated[
        bool, typer.Option("--strict", help="Error for failed proofs and refused Q/DQ pairs.")
    ] = False,
    build: Annotated[
        Path | None,
        typer.Option("--build", metavar="ENGINE", help="Also build an engine from the result."),
    ] = None,
    mean: p.Mean = None,
    std: p.Std = None,
    size: p.Size = None,
    layout: p.Layout = None,
    color: p.Color = None,
    scale: p.Scale = None,
    json_file: p.JsonFile = None,
    verbose: p.Verbose = False,
    quiet: p.Quiet = False,
) -> None:
    """Quantize a model by groups, with proof of every step."""
    from fusewright.cli.parsing import open_data, parse_images, parse_shapes
    from fusewright.cli.targets import check_targets
    from fusewright.cli.terminal import Terminal
    from fusewright.graph.save import Pending

    terminal = Terminal(verbose, quiet, writes=True)
    ranges = parse_shapes(shapes)
    count = (samples or p.RANDOM_SAMPLES) if random_data else None
    data = open_data(calib, "--calib", count, ranges)
    outputs = {"--output": output, "--json": json_file, "--build": build}
    outputs["--search-journal"] = search_journal
    if build is not None:
        from fusewright.engine.build import LAYERS_SUFFIX

        outputs["the report of --build"] = Path(f"{build}{LAYERS_SUFFIX}")
    sources = {"the input file": model, "the calibration data": data, "the plan": plan}
    check_targets(outputs, sources)
    settings: dict[str, Any] = {
        "samples": samples,
        "precision": precision,
        "target": target,
        "group_precision": tuple(group_precision or ()),
        "io_types": io_types,
        "per_tensor_weights": per_tensor_weights,
        "method": method,
        "smooth": smooth,
        "shapes": ranges,
        "exclude": tuple(exclude or ()),
        "include": tuple(include or ()),
        "plan": plan,
        "flat": flat,
        "pool_head": pool_head,
        "int8_residual": int8_residual,
        "int4_method": int4_method,
        "block_size": block_size,
        "search": search,
        "search_budget": search_budget,
        "search_journal": search_journal,
        "verify_samples": verify_samples,
        "strict": strict,
        "images": parse_images((mean, std, size, layout, color, scale), calib),
        "percentile": percentile,
    }
    _settle(settings)
    if build is not None:
        _require_builder(build)
    with Pending() as files:
        result = _run(terminal, model, output, data, {**settings, "pending": files})
        _finish(terminal, result, json_file, build, ranges, files)
        terminal.flush()
        files.commit()


def _require_builder(engine: Path) -> None:
    """Says that no engine can be built here before the work rather than after it."""
    from fusewright.engine.backend import find_backend

    try:
        find_backend()
    except EngineError as error:
        raise EngineError(
            f"--build {engine}: {error}; without --build the model is written, and `fusewright"
            " build --print-trtexec` prints the line that builds it elsewhere"
        ) from error


# Option → the formats that it means something to.
_IS_FOR = {
    "int4_method": ("int4",),
    "block_size": ("int4",),
    "per_tensor_weights": ("int8", "fp8"),
    "smooth": ("int8",),
    "int8_residual": ("int8", "fp8"),
    "percentile": ("int8", "fp8", "nvfp4"),
}


def _settle(settings: dict[str, Any]) -> None:
    """Refuses options that would be without effect, and drops those not given."""
    _refuse_idle(settings)
    method = settings["method"]
    if settings["percentile"] is None:
        del settings["percentile"]
    elif method != "percentile":
        raise UsageError(f"--percentile is for --method percentile, not {method}")
    for name in ("int4_method", "block_size"):
        if settings[name] is None:
            del settings[name]
    if settings["search_budget"] is None:
        del settings["search_budget"]
    elif settings["search"] == "off":
        raise UsageError("--search-budget without a search: add --search plan")


def _refuse_idle(settings: dict[str, Any]) -> None:
    """Refuses options for formats that are not asked for; a plan file may have any."""
    from fusewright.target import FORMATS, Precision

    if settings["plan"] is not None:
        return
    asked = {text.rpartition("=")[2].strip().lower() for text in settings["group_precision"]}
    precision = settings["precision"]
    asked.add("int8" if precision is None else Precision.parse(precision).quantized)
    for name, formats in _IS_FOR.items():
        if settings[name] not in (None, False, "auto", "off") and not asked & set(formats):
            titles = ", ".join(FORMATS[known].title for known in formats)
            example = f"--precision {formats[0]}+fp16, or PATTERN={formats[0]}"
            raise UsageError(f"--{name.replace('_', '-')} is for {titles}: {example}")


def _run(
    terminal: Terminal, model: Path, output: Path, data: Any, settings: dict[str, Any]
) -> Result:
    from fusewright.cli.terminal import StageLines
    from fusewright.pipeline import optimize as run

    with StageLines(terminal) as watcher:
        result = run(model, output, data, watcher, **settings)
    if terminal.verbose:
        _tell_trace(terminal, result)
    terminal.show(_closing(terminal, result, settings))
    return result


def _finish(
    terminal: Terminal,
    result: Result,
    json_file: Path | None,
    engine: Path | None,
    shapes: Any,
    files: Pending,
) -> None:
    """Builds the engine where one was asked for, and writes the JSON."""
    from fusewright.cli.targets import write_json

    report = result.to_dict()
    if engine is not None and result.path is not None:
        # Imported where it is asked for: most runs build nothing.
        from fusewright.cli.build import build_and_show
        from fusewright.engine.build import BuildOptions, BuildPlace

        place = BuildPlace(pending=files, shown=str(result.path))
        options = BuildOptions(shapes=shapes, sizes=result.sizes)
        built = build_and_show(terminal, files.part(result.path), engine, options, place)
        report["engine"] = built.to_dict()
    if json_file is not None:
        write_json(report, json_file, files)


def _closing(terminal: Terminal, result: Result, settings: dict[str, Any]) -> Sequence[Any]:
    from fusewright.calibrate.methods import method_for
    from fusewright.quantize.int4.weights import GPTQ
    from fusewright.report import result_tables as tables
    from fusewright.report.half_tables import half_section, measured_on
    from fusewright.report.plan_tables import hint_lines, kinds_table
    from fusewright.report.text import section
    from fusewright.target import FORMATS, Precision

    width = terminal.width - 2
    how = result.plan.precision
    form = FORMATS.get(Precision.parse(how).quantized or "")
    if result.samples and form is not None:
        by = settings.get("int4_method", GPTQ) if form.weights_only else settings["method"]
        how += f" by {by if form.weights_only else method_for(form, by)}"
    head = tables.headline(result.path, len(result.plan.groups), result.samples, how)
    parts = section(head)
    hints = hint_lines(result.plan, width, terminal.verbose)
    parts += section("Groups by kind", kinds_table(result.plan), *hints)
    parts += tables.heavy_section(result.heavy_ops(), width)
    if result.half is not None:
        parts += half_section(result.half, result.overflows, width, terminal.verbose)
    smoothing = tables.smooth_lines(result.trace)
    if smoothing:
        parts += section("SmoothQuant", *smoothing)
    if result.accuracy is not None:
        title = f"Accuracy against {result.plan.model.path}{tables.measured_over(result.accuracy)}"
        table = tables.accuracy_table(result.accuracy, width)
        said = (*tables.selection_lines(result.accuracy), *measured_on(result.half, result.plan))
        parts += section(title, table, *said)
    parts += section("Cost", tables.cost_table(result.trace.seconds, result.peak_bytes))
    undone = tables.undone_lines(result.trace.undone())
    parts += section("Undone", *(undone or ("nothing: every rewrite kept the results",)))
    if result.search is not None:
        parts += section("Search", *result.search.lines())
    if result.notes:
        parts += section("Notes", *result.notes)
    return parts


def _tell_trace(terminal: Terminal, result: Result) -> None:
    for event in result.trace:
        if event.what != "pass":
            words = (event.name, event.where, event.detail)
            said = "  ".join(word for word in words if word)
            terminal.tell(f"{event.stage:<9}  {event.what:<6}  {said}")
