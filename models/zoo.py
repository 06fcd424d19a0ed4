"""Exports real architectures with seeded random weights, through either PyTorch exporter.

    python models/zoo.py --list
    python models/zoo.py resnet18 vit_b_16 --exporter dynamo -o DIR
    python models/zoo.py light_resnet50 -o DIR      # of the onnx package, see light.py

Needs torch and the library that the name belongs to (torchvision, timm, transformers); the
`light_*` models need onnx and onnxruntime alone. Every exported batch is dynamic.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from architectures import ZOO, Spec, build, example
from light import LIGHT, light

if TYPE_CHECKING:
    import torch

EXPORTERS = ("torchscript", "dynamo")


@dataclass(frozen=True)
class Spelling:
    """How a model is written.

    Attributes:
        exporter: one of `EXPORTERS`.
        opset: None leaves it to the exporter.
        dynamic: whether the batch is open; if not, it is the example's.
        keep_batch_norm: leaves BatchNormalization nodes unfolded (TorchScript only).
    """

    exporter: str = "torchscript"
    opset: int | None = None
    dynamic: bool = True
    keep_batch_norm: bool = False


def export(
    name: str, exporter: str, out: Path, *, seed: int = 0, keep_batch_norm: bool = False
) -> Path:
    """Exports `name` to `out`: a file that ends in .onnx, or a folder. Returns the file's path.

    `keep_batch_norm` leaves BatchNormalization nodes unfolded (TorchScript only).

    Raises:
        KeyError: no such name in `ZOO`.
        ValueError: an exporter that is none of `EXPORTERS`, or that cannot keep BatchNorm.
    """
    spelling = Spelling(exporter, keep_batch_norm=keep_batch_norm)
    _check(spelling)
    path = out if out.suffix == ".onnx" else out / f"{name}_{exporter}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    write(build(name, seed), ZOO[name], spelling, path)
    return path


def write(
    model: torch.nn.Module | torch.export.ExportedProgram,
    spec: Spec,
    spelling: Spelling,
    path: Path,
) -> None:
    """Writes a model of `spec` to `path`, in `spelling`.

    `model` may be what `exported` gives, for the dynamo exporter: it needs that in any case.

    Raises:
        ValueError: an exporter that is none of `EXPORTERS`, or that cannot keep BatchNorm.
    """
    _check(spelling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if spelling.exporter == "dynamo":
            _export_dynamo(model, spec, spelling, path)
        else:
            _export_torchscript(model, spec, spelling, path)


def exported(
    model: torch.nn.Module, spec: Spec, *, dynamic: bool = True
) -> torch.export.ExportedProgram:
    """The program that the dynamo exporter writes, made once for several opsets."""
    import torch

    shapes = _shapes(spec) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A batch of 1 would be taken for a constant.
        return torch.export.export(model, example(spec), dynamic_shapes=shapes)


def _check(spelling: Spelling) -> None:
    if spelling.exporter not in EXPORTERS:
        raise ValueError(
            f"exporter must be one of {', '.join(EXPORTERS)}, not {spelling.exporter!r}"
        )
    if spelling.keep_batch_norm and spelling.exporter != "torchscript":
        raise ValueError("only the torchscript exporter can keep BatchNorm")


def _export_torchscript(model: torch.nn.Module, spec: Spec, spelling: Spelling, path: Path) -> None:
    import torch

    mode, names = torch.onnx.TrainingMode, (*spec.inputs, "output")
    torch.onnx.export(
        model,
        example(spec),
        path,
        dynamo=False,
        opset_version=spelling.opset or 17,
        training=mode.PRESERVE if spelling.keep_batch_norm else mode.EVAL,
        do_constant_folding=not spelling.keep_batch_norm,
        input_names=[*spec.inputs],
        output_names=["output"],
        dynamic_axes={name: {0: "batch"} for name in names} if spelling.dynamic else None,
    )


def _export_dynamo(
    model: torch.nn.Module | torch.export.ExportedProgram,
    spec: Spec,
    spelling: Spelling,
    path: Path,
) -> None:
    import torch

    program = isinstance(model, torch.export.ExportedProgram)
    torch.onnx.export(
        model,
        () if program else example(spec),
        path,
        dynamo=True,
        opset_version=spelling.opset,
        input_names=[*spec.inputs],
        output_names=["output"],
        dynamic_shapes=_shapes(spec) if spelling.dynamic and not program else None,
        external_data=False,
        verbose=False,
    )


def _shapes(spec: Spec) -> tuple[object, ...]:
    import torch

    shapes = tuple({0: torch.export.Dim("batch")} for _ in spec.inputs)
    return (shapes,) if spec.library == "transformers" else shapes  # it takes *inputs


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="see --list")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--exporter", choices=EXPORTERS, default="torchscript")
    parser.add_argument("--keep-batch-norm", action="store_true", help="torchscript only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path(), help="folder to write into")
    options = parser.parse_args()
    if options.list or not options.names:
        print(*ZOO, *LIGHT, sep="\n")
        return
    unknown = [name for name in options.names if name not in ZOO and name not in LIGHT]
    if unknown:
        parser.error(f"no model {', '.join(unknown)} in the zoo; --list names them")
    for name in options.names:
        if name in LIGHT:
            options.output.mkdir(parents=True, exist_ok=True)
            path = options.output / f"{name}.onnx"
            onnx.save(light(name, seed=options.seed), path)
        else:
            keep = options.keep_batch_norm
            path = export(
                name, options.exporter, options.output, seed=options.seed, keep_batch_norm=keep
            )
        print(path)


if __name__ == "__main__":
    main()
