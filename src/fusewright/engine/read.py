"""Reports from files: those of `fusewright build`, and layer files of trtexec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusewright.engine.describe import describe
from fusewright.engine.kernels import Kernel, TensorType
from fusewright.engine.layers import read_json, read_layers, read_times
from fusewright.engine.outline import Outline
from fusewright.engine.report import SCHEMA, EngineReport, Finding, GroupReport, KernelReport
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
        return EngineReport(
            **{name: plain[name] for name in ("model", "engine", "backend", "version")},
            seconds=plain["seconds"],
            engine_bytes=plain["engine_bytes"],
            profiles={name: _shapes(value) for name, value in plain["profiles"].items()},
            kernels=tuple(map(_kernel, plain["kernels"])),
            operators=plain["operators"],
            notes=tuple(plain["notes"]),
            groups=tuple(GroupReport(**_tuples(group)) for group in plain["groups"]),
            findings=tuple(Finding(**_tuples(finding)) for finding in plain["findings"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{path}: not a whole report of fusewright build: {error}") from error


def _shapes(value: list[list[int]]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    low, best, high = (tuple(shape) for shape in value)
    return low, best, high


def _kernel(row: dict[str, Any]) -> KernelReport:
    ends = {name: tuple(map(_tensor, row[name])) for name in ("inputs", "outputs", "constants")}
    own = () if row["inferred"] else tuple(row["nodes"])
    kernel = Kernel(name=row["name"], type=row["type"], nodes=own, tactic=row["tactic"], **ends)
    return KernelReport(
        kernel=kernel,
        operation=row["operation"],
        dtype=row["dtype"],
        groups=tuple(row["groups"]),
        nodes=tuple(row["nodes"]),
        inferred=row["inferred"],
        milliseconds=row["milliseconds"],
    )


def _tensor(row: dict[str, Any]) -> TensorType:
    return TensorType(row["name"], row["dtype"], tuple(row["shape"]))


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
