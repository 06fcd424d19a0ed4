"""What TensorRT-RTX makes of a model in each precision: kernels, traffic, data types, and accuracy.

    python tools/bench_plan.py swin_t.onnx vit_b_16.onnx --precision int8 int8+fp16 fp16
    python tools/bench_plan.py swin_t.onnx --precision fp8+fp16 --sm 89
    python tools/bench_plan.py peer.onnx --as-is          # a file that another tool has written

Each model is quantized on random data (a dynamic batch becomes 1) and built; no GPU is needed.
Kernels are the rows of the builder's list except stream synchronisation; activation traffic is the
size of every kernel's inputs and outputs, weights that of its constants. SQNR is that of the first
samples against the original, on the rounding twin where tensors are half; with random weights and
data it compares precisions of one model, and nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import fusewright
from fusewright import RandomSamples
from fusewright.engine.build import BuildOptions
from fusewright.engine.report import EngineReport
from fusewright.graph.load import read_source

HEADS = ("file", "precision", "kernels", "MB moved", "MB weights", "conv, GEMM, attention", "SQNR")
LAYOUT = "{:<24} {:<10} {:>7} {:>9} {:>10}  {:<44} {:>8}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--precision", nargs="+", default=["int8", "int8+fp16", "fp16"])
    parser.add_argument("--sm", type=int, help="compute capability, such as 89")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--as-is", action="store_true", help="build the files as they are")
    options = parser.parse_args()
    print(LAYOUT.format(*HEADS))
    for model in options.models:
        for precision in ["as is"] if options.as_is else options.precision:
            print(LAYOUT.format(*row(model, precision, options)), flush=True)


def row(model: Path, precision: str, options: argparse.Namespace) -> tuple[str, ...]:
    """One line of the table."""
    accuracy = ""
    with tempfile.TemporaryDirectory() as folder:
        made = model
        if precision != "as is":
            made = Path(folder) / "out.onnx"
            shapes = batch_of_one(model)
            data = RandomSamples(options.samples, shapes={name: s[1] for name, s in shapes.items()})
            result = fusewright.optimize(model, made, data, precision=precision, shapes=shapes)
            worst = None if result.accuracy is None else result.accuracy.worst
            accuracy = f"{worst.sqnr_db:.1f} dB" if worst and worst.sqnr_db is not None else ""
        build = BuildOptions(backend="tensorrt_rtx", sm=options.sm, shapes=batch_of_one(made))
        report = fusewright.build(made, options=build)
    moved = report.activation_bytes
    figures = (
        "" if moved is None else f"{moved / 1e6:.1f}",
        f"{report.weight_bytes / 1e6:.1f}",
        types(report),
    )
    return (model.stem, precision, str(len(report.kernels)), *figures, accuracy)


def batch_of_one(model: Path) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Shapes for each dynamic input whose other dimensions are known."""
    found = {}
    for spec in read_source(model).interface.inputs:
        if spec.shape is not None and any(not isinstance(d, int) for d in spec.shape):
            shape = tuple(d if isinstance(d, int) else 1 for d in spec.shape)
            found[spec.name] = (shape, shape, shape)
    return found


def types(report: EngineReport) -> str:
    """`1 conv Int8, 52 gemm Int8, 12 attention Int8`."""
    found = report.operations.items()
    return ", ".join(f"{n} {name} {dtype}" for name, counts in found for dtype, n in counts.items())


if __name__ == "__main__":
    main()
