"""What INT8 costs in accuracy on trained models: fusewright beside onnxruntime and ModelOpt.

    python tools/bench_accuracy.py                       # digits_cnn, and the corpus where it lies
    python tools/bench_accuracy.py digits_cnn --methods mse
    python tools/bench_accuracy.py --modelopt-python VENV/bin/python --json OUT.json

Every tool gets the same first calibration samples and writes INT8 Q/DQ with a float32 remainder,
each in a process of its own (tools/peers.py says with which settings). Judged on the evaluation
samples in onnxruntime with optimizations off:

    SQNR    10 log10(sum(ref²) / sum((ref - q)²)) of the first output, ref being the FP32 model
    score   the task's own metric, top-1 in percent or PSNR in dB
    int8    Conv, ConvTranspose, Gemm and MatMul nodes with both operands quantized, of all

The corpus is found by --corpus, by FUSEWRIGHT_CORPUS, or beside the checkout. Exit code 1 if any
row failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
from peers import METHODS

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
# Samples to calibrate with: what the figures in the README and the issues are made with.
SAMPLES = {
    "digits_cnn": 128,
    "resnet20_cifar10_ts13_bn": 128,
    "squeezenet10_dc_imagenet_ts13": 100,
    "rlfn_x4_ts13": 16,
}
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVING = (
    "Concat",
    "Flatten",
    "Identity",
    "MaxPool",
    "Pad",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


@dataclass(frozen=True)
class Score:
    """One quantized model of one task; `sqnr` in dB, `score` in the task's unit, `wall` in s."""

    task: str
    tool: str
    sqnr: float
    score: float
    int8: int
    heavy: int
    wall: float
    error: str | None = None


class Digits:
    """The shipped digits model with the interface of a task of the corpus."""

    model = MODELS / "digits_cnn.onnx"
    unit = "% top-1"

    def calib(self) -> dict[str, np.ndarray]:
        """The calibration samples by input name."""
        return dict(np.load(MODELS / "digits_cnn_calib.npz"))

    def outputs(self, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]]) -> np.ndarray:
        """The logits over the held-out samples."""
        return run({"input": np.load(MODELS / "digits_cnn_test.npz")["input"]})[0]

    def score(self, output: np.ndarray, label: np.ndarray) -> float:
        """Top-1 in percent."""
        return 100.0 * float((output.argmax(-1) == label).mean())

    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """Held-out inputs and labels."""
        held_out = np.load(MODELS / "digits_cnn_test.npz")
        return held_out["input"], held_out["label"]


def load_tasks(corpus: Path) -> dict[str, Any]:
    """The digits model, and the corpus' tasks if `corpus` is a folder."""
    tasks: dict[str, Any] = {"digits_cnn": Digits()}
    if corpus.is_dir():
        spec = importlib.util.spec_from_file_location("corpus_tasks", corpus / "tasks.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["corpus_tasks"] = module
        spec.loader.exec_module(module)
        tasks |= module.TASKS
    return tasks


def commands(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Each tool with each method: a name and the command, but for model, data and output."""
    peers = str(HERE / "peers.py")
    for method in options.methods:
        chosen = [] if method == "default" else ["--method", method]
        yield f"fusewright {method}", [options.fusewright, "optimize", *chosen]
    for method in METHODS["onnxruntime"]:
        argv = [sys.executable, peers, "onnxruntime", "--method", method]
        yield f"onnxruntime {method}", argv
    for method in METHODS["modelopt"] if options.modelopt_python else ():
        argv = [options.modelopt_python, peers, "modelopt", "--method", method]
        yield f"modelopt {method}", argv


def outputs(task: Any, model: Path) -> np.ndarray:
    """First output over the evaluation samples, optimizations off, as float64."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return task.outputs(lambda feed: session.run(None, feed)).astype(np.float64)


def count_int8(path: Path) -> tuple[int, int]:
    """Heavy nodes with both operands quantized, and heavy nodes, functions inlined.

    An operand is quantized behind DequantizeLinear, or behind what only moves such elements: there
    a Q/DQ pair serves both sides.
    """
    graph = onnx.inliner.inline_local_functions(onnx.load(path)).graph
    quantized: set[str] = set()
    heavy: list[onnx.NodeProto] = []
    for node in graph.node:  # in topological order
        data = node.input if node.op_type == "Concat" else node.input[:1]
        moved = node.op_type in MOVING and quantized.issuperset(data)
        if node.op_type == "DequantizeLinear" or moved:
            quantized.update(node.output)
        elif node.op_type in HEAVY:
            heavy.append(node)
    return sum(quantized.issuperset(node.input[:2]) for node in heavy), len(heavy)


def judge(task: Any, reference: np.ndarray, quantized: Path) -> dict[str, float]:
    """SQNR, score and count of one quantized file."""
    output = outputs(task, quantized)
    noise = float(((reference - output) ** 2).sum())
    sqnr = 10 * np.log10(float((reference**2).sum()) / noise) if noise else np.inf
    int8, heavy = count_int8(quantized)
    score = task.score(output.astype(np.float32), task.test()[1])
    return {"sqnr": float(sqnr), "score": score, "int8": int8, "heavy": heavy}


def quantize(argv: list[str]) -> tuple[float, str | None]:
    """Runs the tool; wall seconds and, where it failed, its last line."""
    start = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    lines = (done.stdout + done.stderr).strip().splitlines() or ["(no output)"]
    return wall, f"exit {done.returncode}: {lines[-1][:200]}" if done.returncode else None


def bench(name: str, task: Any, options: argparse.Namespace, folder: Path) -> Iterator[Score]:
    """All tools on one task; the FP32 model first."""
    reference = outputs(task, task.model)
    score = task.score(reference.astype(np.float32), task.test()[1])
    yield Score(name, "float32", np.inf, score, *count_int8(task.model), 0.0)
    samples = options.samples or SAMPLES.get(name, 128)
    data, out = folder / "calibration.npz", folder / "out.onnx"
    np.savez(data, **{key: array[:samples] for key, array in task.calib().items()})
    for tool, argv in commands(options):
        model = str(task.model)
        ours = tool.startswith("fusewright")
        feed = ["--calib", str(data), "--samples", str(samples)] if ours else [str(data)]
        wall, error = quantize([*argv, model, *feed, "-o", str(out)])
        if error:
            yield Score(name, tool, np.nan, np.nan, 0, 0, wall, error)
            continue
        yield Score(task=name, tool=tool, wall=wall, **judge(task, reference, out))
        out.unlink()


def finite(value: Any) -> bool:
    """Whether JSON can hold `value`: it has no infinity."""
    return not isinstance(value, float) or bool(np.isfinite(value))


def parse() -> argparse.Namespace:
    """The command line's options."""
    beside = HERE.parent.parent / "shared" / "corpus"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help="default: digits_cnn and the convolutional ones")
    corpus = Path(os.environ.get("FUSEWRIGHT_CORPUS", beside))
    parser.add_argument("--corpus", type=Path, default=corpus)
    parser.add_argument(
        "--methods", nargs="*", default=["default", "minmax", "percentile", "entropy", "mse"]
    )
    parser.add_argument("--samples", type=int, help="calibration samples, the same for all tasks")
    parser.add_argument("--modelopt-python", help="interpreter that has nvidia-modelopt[onnx]")
    program = str(Path(sys.executable).with_name("fusewright"))
    parser.add_argument("--fusewright", default=program, help="the program to measure")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    return parser.parse_args()


def main() -> int:
    """Measures, prints a line as each figure comes, writes the JSON."""
    options = parse()
    tasks = load_tasks(options.corpus)
    if len(tasks) == 1:
        print(f"no corpus at {options.corpus}: only digits_cnn", file=sys.stderr)
    unknown = set(options.tasks) - set(tasks)
    if unknown:
        raise SystemExit(f"no task {', '.join(sorted(unknown))}; there are {', '.join(tasks)}")
    found: list[Score] = []
    print(f"{'task':30} {'tool':23} {'SQNR dB':>8} {'score':>7} {'int8':>8} {'wall s':>7}")
    for name in options.tasks or [name for name in SAMPLES if name in tasks]:
        with tempfile.TemporaryDirectory() as folder:
            for row in bench(name, tasks[name], options, Path(folder)):
                found.append(row)
                figures = f"{row.sqnr:8.2f} {row.score:7.2f} {row.int8:4}/{row.heavy:<3}"
                print(f"{name:30} {row.tool:23} {row.error or f'{figures} {row.wall:7.1f}'}")
    if options.json:
        rows = [{k: v if finite(v) else None for k, v in asdict(row).items()} for row in found]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row.error for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
