"""The `trtexec` line that builds the same engine where no Python TensorRT is installed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fusewright.engine.profiles import Shape, ShapeRange


@dataclass(frozen=True)
class TrtexecOptions:
    """What the line should ask for; `major` is the TensorRT version it is written for."""

    engine: Path | None = None
    layers: Path | None = None
    major: int = 11


def trtexec_command(
    model: Path,
    shapes: Mapping[str, ShapeRange] | None = None,
    options: TrtexecOptions | None = None,
) -> list[str]:
    """The arguments of a `trtexec` call that builds `model`.

    `shapes` holds the dynamic inputs only (trtexec refuses shapes for a static model); see
    `profiles.choose_profiles`. `--stronglyTyped` is needed on TensorRT 10 and a no-op since 11.
    """
    options = options or TrtexecOptions()
    command = ["trtexec", f"--onnx={model}"]
    command.append(f"--saveEngine={options.engine or model.with_suffix('.engine')}")
    if options.major == 10:
        command.append("--stronglyTyped")
    for flag, which in (("minShapes", 0), ("optShapes", 1), ("maxShapes", 2)):
        if shapes:
            declared = (_declared(name, ranges[which]) for name, ranges in shapes.items())
            command.append(f"--{flag}={','.join(declared)}")
    if options.layers:
        command += [
            "--profilingVerbosity=detailed",
            f"--exportLayerInfo={options.layers}",
            "--skipInference",
        ]
    return command


def shell_line(command: list[str]) -> str:
    """`command` quoted for a POSIX shell."""
    return shlex.join(command)


def _declared(name: str, shape: Shape) -> str:
    # trtexec splits at ':' and ',', unless the name stands between single quotes.
    quoted = f"'{name}'" if ":" in name or "," in name else name
    return f"{quoted}:{'x'.join(map(str, shape))}"
