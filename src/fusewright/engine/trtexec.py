"""The `trtexec` line that builds the same engine where no Python TensorRT is installed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from fusewright.engine.formats import FP16, INT8
from fusewright.engine.ranges import Shape, ShapeRange
from fusewright.errors import EngineError, UsageError
from fusewright.plan.collapse import DOMAIN

VERSIONS = ("8.6", "10", "11")
"""Those that a line can be written for."""
_NEWEST_OPSET = {"8.6": 17}
# 8.6 has no strong typing: the formats of the file are allowed one by one. Its precision
# constraints bind layers that are given a type by hand, which Q/DQ and FP16 tensors do without.
_ALLOWED = {INT8: "--int8", FP16: "--fp16"}


@dataclass(frozen=True)
class TrtexecOptions:
    """What the line should ask for.

    Attributes:
        version: one of `VERSIONS`.
        engine: None writes it beside the model.
        layers: file for what the engine's kernels are.
        times: file for how long they take; without it nothing is run.
        timing_cache: file of kernel timings, read and written.
        refit, strip_weights: as `BuildOptions`.
        formats: number formats in the file, see `types`.
    """

    version: str = VERSIONS[-1]
    engine: Path | None = None
    layers: Path | None = None
    times: Path | None = None
    timing_cache: Path | None = None
    refit: bool = False
    strip_weights: bool = False
    formats: frozenset[str] = frozenset()


def trtexec_command(
    model: Path,
    shapes: Mapping[str, ShapeRange] | None = None,
    options: TrtexecOptions | None = None,
) -> list[str]:
    """The arguments of a `trtexec` call that builds `model`.

    `shapes` holds the dynamic inputs only (trtexec refuses shapes for a static model); see
    `profiles.choose_profiles`.

    Raises:
        UsageError: a version there is no line for, or an option that it lacks.
        EngineError: a number format that it lacks.
    """
    options = options or TrtexecOptions()
    command = ["trtexec", f"--onnx={model}"]
    command.append(f"--saveEngine={options.engine or model.with_suffix('.engine')}")
    command += _typing(options)
    for flag, which in (("minShapes", 0), ("optShapes", 1), ("maxShapes", 2)):
        if shapes:
            declared = (_declared(name, ranges[which]) for name, ranges in shapes.items())
            command.append(f"--{flag}={','.join(declared)}")
    if options.timing_cache:
        command.append(f"--timingCacheFile={options.timing_cache}")
    command += _refitting(options)
    if options.layers:
        command += ["--profilingVerbosity=detailed", f"--exportLayerInfo={options.layers}"]
    if options.times:
        # Profiling slows the run it is part of, so it gets one of its own.
        command += ["--separateProfileRun", "--dumpProfile", f"--exportProfile={options.times}"]
    elif options.layers:
        command.append("--skipInference")
    return command


def check_version(model: onnx.ModelProto, version: str) -> None:
    """Refuses a file that this TensorRT's parser does not read.

    Raises:
        UsageError: a version there is no line for.
        EngineError: with what to do.
    """
    _check_known(version)
    newest = _NEWEST_OPSET.get(version)
    if newest is None:
        return
    if any(node.domain == DOMAIN for node in model.graph.node):
        raise EngineError(
            f"TensorRT {version} reads no local functions: optimize with --flat for it"
        )
    opset = max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)
    if opset > newest:
        raise EngineError(
            f"TensorRT {version} reads ONNX up to opset {newest}; the file has {opset}"
        )


def shell_line(command: list[str]) -> str:
    """`command` quoted for a POSIX shell."""
    return shlex.join(command)


def _check_known(version: str) -> None:
    if version not in VERSIONS:
        raise UsageError(f"no trtexec line for TensorRT {version!r}: choose {', '.join(VERSIONS)}")


def _typing(options: TrtexecOptions) -> list[str]:
    _check_known(options.version)
    if options.version == "10":
        return ["--stronglyTyped"]  # the only mode since 11
    if options.version == "11":
        return []
    lacking = sorted(options.formats - set(_ALLOWED))
    if lacking:
        raise EngineError(f"TensorRT {options.version} has no {lacking[0].upper()}, the file has")
    return [_ALLOWED[name] for name in sorted(options.formats)]


def _refitting(options: TrtexecOptions) -> list[str]:
    if options.strip_weights and options.version == "8.6":
        raise UsageError("--strip-weights: TensorRT 8.6 has no such thing")
    flags = (("--refit", options.refit), ("--stripWeights", options.strip_weights))
    return [flag for flag, wanted in flags if wanted]


def _declared(name: str, shape: Shape) -> str:
    # trtexec splits at ':' and ',', unless the name stands between single quotes.
    quoted = f"'{name}'" if ":" in name or "," in name else name
    return f"{quoted}:{'x'.join(map(str, shape))}"
