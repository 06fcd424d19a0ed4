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
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from architectures import ZOO, Spec, build, example
from light import LIGHT, light

if TYPE_CHECKING:
    import torch

EXPORTERS = ("torchscript", "dynamo")


def export(
    name: str, exporter: str, out: Path, *, seed: int = 0, keep_batch_norm: bool = False
) -> Path:
    """Exports `name` to `out`: a file that ends in .onnx, or a folder. Returns the file's path.

    `keep_batch_norm` leaves BatchNormalization nodes unfolded (TorchScript only).

    Raises:
        KeyError: no such name in `ZOO`.
        ValueError: an exporter that is none of `EXPORTERS`, or that cannot keep BatchNorm.
    """
    if exporter not in EXPORTERS:
        raise ValueError(f"exporter must be one of {', '.join(EXPORTERS)}, not {exporter!r}")
    if keep_batch_norm and exporter != "torchscript":
        raise ValueError("only the torchscript exporter can keep BatchNorm")
    path = out if out.suffix == ".onnx" else out / f"{name}_{exporter}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    spec, model = ZOO[name], build(name, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            _export_dynamo(model, spec, path)
        else:
            _export_torchscript(model, spec, path, keep_batch_norm)
    return path


def _export_torchscript(model: torch.nn.Module, spec: Spec, path: Path, keep_bn: bool) -> None:
    import torch

    mode = torch.onnx.TrainingMode
    names = (*spec.inputs, "output")
    torch.onnx.export(
        model,
        example(spec),
        path,
        dynamo=False,
        opset_version=17,
        training=mode.PRESERVE if keep_bn else mode.EVAL,
        do_constant_folding=not keep_bn,
        input_names=[*spec.inputs],
        output_names=["output"],
        dynamic_axes={name: {0: "batch"} for name in names},
    )


def _export_dynamo(model: torch.nn.Module, spec: Spec, path: Path) -> None:
    import torch

    shapes = tuple({0: torch.export.Dim("batch")} for _ in spec.inputs)
    torch.onnx.export(
        model,
        example(spec),  # a batch of 1 would be taken for a constant
        path,
        dynamo=True,
        input_names=[*spec.inputs],
        output_names=["output"],
        dynamic_shapes=(shapes,) if spec.library == "transformers" else shapes,  # takes *inputs
        external_data=False,
        verbose=False,
    )


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
