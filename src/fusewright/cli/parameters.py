"""Arguments and options that several subcommands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path, typer.Argument(metavar="MODEL.onnx", help="The ONNX file.", show_default=False)
]
RANDOM_SAMPLES = 16
"""How many random samples there are where --samples does not say."""

Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        min=1,
        max=2**31 - 1,
        help="How many samples are used; without it all (16 if random).",
    ),
]
RandomData = Annotated[
    bool, typer.Option("--random-data", help="Seeded random samples, where there are no real ones.")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shapes",
        metavar="NAME:SHAPE",
        help="Shape of a dynamic input, NAME:1x3x224x224 or NAME:MIN:OPT:MAX; repeatable.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="Keep in float what matches: a glob on group and node names, or op:Conv; repeatable.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include", metavar="PATTERN", help="Quantize only what matches, likewise; repeatable."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="FORMAT[+REST]",
        help="int8, fp8, int4 (weights), nvfp4 or mxfp8 (Linears), +fp16 or +bf16 for the rest; or"
        " fp16, bf16, fp32 alone. Default int8+fp16 (int8 for TensorRT 8.6).",
    ),
]
IoTypes = Annotated[
    str,
    typer.Option(
        "--io-types",
        metavar="keep|half",
        help="Float inputs and outputs of the model stay as they are, or take the rest's type.",
    ),
]
GroupPrecision = Annotated[
    list[str] | None,
    typer.Option(
        "--group-precision",
        metavar="PATTERN=FORMAT",
        help="A format of --precision, or float, for what matches, patterns as of --exclude;"
        " repeatable.",
    ),
]
Int4Method = Annotated[
    str | None,
    typer.Option("--int4-method", help="Of INT4 weights: gptq (default), awq or rtn (to nearest)."),
]
BlockSize = Annotated[
    int | None,
    typer.Option(
        "--block-size", help="Rows of an INT4 weight with one scale: 128 (default), 64, 32."
    ),
]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="[ENGINE:]GPU",
        help="What is built for: tensorrt-10:l4, rtx:sm120, tensorrt-8.6, rtx4090.",
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write the whole report, as JSON."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]

Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="M[,M,M]",
        help="Images: subtracted after --scale, one value or one per channel.",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std",
        metavar="S[,S,S]",
        help="Images: divided by after --mean, likewise.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="HxW",
        help="Images: resized to; without it the model's own size.",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option("--layout", help="Images: nchw (default) or nhwc."),
]
Color = Annotated[
    str | None,
    typer.Option("--color", help="Images: rgb (default) or bgr."),
]
Scale = Annotated[
    str | None,
    typer.Option(
        "--scale",
        metavar="X",
        help="Images: pixels are multiplied by it; default 1/255.",
    ),
]
