"""Reports from files: those of `fusewright build`, and layer files of trtexec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusewright.engine.advice import ADVICE
from fusewright.engine.describe import describe
from fusewright.engine.layers import read_json, read_layers, read_times
from fusewright.engine.outline import Outline
from fusewright.engine.plain import from_plain
from fusewright.engine.report import SCHEMA, EngineReport
from fusewright.errors import EngineError, UsageError
from fusewright.graph.load import read_source

TRTEXEC = "trtexec"


def read_report(path: Path, model: Path | None = None, profile: Path | None = None) -> EngineReport:
    """The report that a file holds, or the one that a layer file of trtexec gives.

    Args:
        path: `<engine>.layers.json` of `fusewright build`, or a `--exportLayerInfo` file.
        model: the ONNX file that was built; without it a layer file's groups are those that its
            rows name, and fewer findings are made.
        profile: a `--exportProfile` file with times, for a layer file.

    Raises:
        EngineError: a file that is none of these.
        ModelError: `model` is not a whole ONNX model.
        UsageError: `model` or `profile` with a report that holds what they would tell.
    """
    content = read_json(path)
    if isinstance(content, dict) and str(content.get("schema", "")).startswith("fusewright.engine"):
        if content["schema"] != SCHEMA:
            raise EngineError(f"{path}: a report of another version of Fusewright; build again")
        if model is not None or profile is not None:
            raise UsageError(f"{path} is a whole report: --model and --profile are for trtexec's")
        return _from_dict(path, content)
    kernels = read_layers(path)
    outline = None if model is None else Outline(read_source(model).proto)
    plan = describe(kernels, outline, None if profile is None else read_times(profile))
    notes = () if outline else ("without --model the file's precisions and pairs are not known",)
    return EngineReport(
        model=str(model or path),
        engine=None,
        backend=TRTEXEC,
        version="",
        seconds=0.0,
        engine_bytes=0,
        profiles={},
        kernels=plan.kernels,
        operators=plan.operators,
        notes=notes,
        groups=plan.groups,
        findings=plan.findings,
    )


def _from_dict(path: Path, plain: dict[str, Any]) -> EngineReport:
    try:
        rows = plain.get("kernels")
        whole = {**plain, "kernels": list(map(_nested, rows)) if isinstance(rows, list) else rows}
        report = from_plain(EngineReport, whole)
        named = [i for group in report.groups for i in group.kernels]
        named += [i for finding in report.findings for i in finding.kernels]
        unknown: list[object] = [i for i in named if not 0 <= i < len(report.kernels)]
        unknown += [finding.cause for finding in report.findings if finding.cause not in ADVICE]
        if unknown:
            raise ValueError(f"it names {unknown[0]!r}, which is not there")
    except ValueError as error:
        said = str(error).replace("].kernel.", "].")
        raise EngineError(f"{path}: not a whole report of fusewright build: {said}") from error
    return report


def _nested(row: Any) -> Any:
    """A row as `KernelReport` has it: its plan in an object of its own, with its own nodes."""
    if not isinstance(row, dict):
        return row
    return {**row, "kernel": {**row, "nodes": [] if row.get("inferred") else row.get("nodes")}}
