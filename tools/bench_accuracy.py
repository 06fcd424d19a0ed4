"""What INT8 costs in accuracy on trained models: fusewright beside onnxruntime and ModelOpt.

    python tools/bench_accuracy.py                       # the digits, and the corpus where it lies
    python tools/bench_accuracy.py digits_cnn --methods default mse
    python tools/bench_accuracy.py --modelopt-python VENV/bin/python --json OUT.json

Every tool gets the same first calibration samples and writes INT8 Q/DQ with a float32 remainder,
each in a process of its own (tools/peers.py says with which settings). Judged on the evaluation
samples in onnxruntime with optimizations off:

    SQNR    10 log10(sum(ref²) / sum((ref - q)²)) of the first output, ref being the FP32 model
    score   the task's own metric, top-1 in percent or PSNR in dB
    int8    Conv, ConvTranspose, Einsum, Gemm and MatMul nodes with both operands quantized, of all

A second table compares on the same heavy ops: what the other tool leaves float is excluded in
fusewright, and what fusewright leaves float is put back to float in the other tool's file (the
guard's grouped convolutions; attention of a size that the target runs in float), or the tool runs
again, told to leave it float. The best method of each tool is marked; --min-gain asks for a
distance to the best of all, ops put back.

The corpus is found by --corpus, by FUSEWRIGHT_CORPUS, or beside the checkout. Exit code 1 if any
row failed or --min-gain was missed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from bench_tasks import SAMPLES, load_tasks
from int8_ops import count_int8
from peers import METHODS
from same_ops import Comparer, Figure, Peer, SameOps, least_gain, same_ops_lines

HERE = Path(__file__).resolve().parent
DEFAULT = "default"


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


@dataclass(frozen=True)
class Job:
    """One task with its reference output, and how tools are run on it."""

    name: str
    task: Any
    reference: np.ndarray
    samples: int
    folder: Path
    options: argparse.Namespace

    @property
    def data(self) -> Path:
        """The calibration samples."""
        return self.folder / "calibration.npz"

    def optimize(self, out: Path, *more: str) -> tuple[float, str | None]:
        """Runs fusewright, the report beside `out`; wall seconds and the error."""
        feed = ["--calib", str(self.data), "--samples", str(self.samples)]
        report = ["--json", str(out.with_suffix(".json"))]
        program = [self.options.fusewright, "optimize", str(self.task.model)]
        program += ["--precision", "int8"]  # the peers' remainder is float32 too
        return run([*program, *feed, *report, *more, "-o", str(out)])

    def judge(self, quantized: Path) -> tuple[float, float]:
        """SQNR in dB and score of one quantized file."""
        output = outputs(self.task, quantized)
        noise = float(((self.reference - output) ** 2).sum())
        signal = float((self.reference**2).sum())
        score = self.task.score(output.astype(np.float32), self.task.test()[1])
        return 10 * float(np.log10(signal / noise)) if noise else np.inf, score


def outputs(task: Any, model: Path) -> np.ndarray:
    """First output over the evaluation samples, optimizations off, as float64."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return task.outputs(lambda feed: session.run(None, feed)).astype(np.float64)


def run(argv: Sequence[str]) -> tuple[float, str | None]:
    """Runs a tool; wall seconds and, where it failed, its last line."""
    start = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    lines = (done.stdout + done.stderr).strip().splitlines() or ["(no output)"]
    return wall, f"exit {done.returncode}: {lines[-1][:200]}" if done.returncode else None


def peers(job: Job) -> Iterator[tuple[str, list[str]]]:
    """The other tools with each method: a name and the command, but for the output."""
    interpreters = {"modelopt": job.options.modelopt_python, "onnxruntime": sys.executable}
    for tool, interpreter in interpreters.items():
        for method in METHODS[tool] if interpreter else ():
            argv = [interpreter, str(HERE / "peers.py"), tool, str(job.task.model), str(job.data)]
            yield f"{tool} {method}", [*argv, "--method", method]


def run_peer(
    argv: Sequence[str], out: Path, excluded: Sequence[str] = ()
) -> tuple[float, str | None]:
    """Runs another tool, which leaves the nodes `excluded` float."""
    return run([*argv, *(f"--float={name}" for name in excluded), "-o", str(out)])


def scored(job: Job, tool: str, out: Path, done: tuple[float, str | None]) -> Score:
    """The row of a tool that was run."""
    wall, error = done
    if error:
        return Score(job.name, tool, np.nan, np.nan, 0, 0, wall, error)
    return Score(job.name, tool, *job.judge(out), *count_int8(out), wall)


def bench(job: Job) -> Iterator[Score | SameOps]:
    """All tools on one task, one after the other; the FP32 model first."""
    score = job.task.score(job.reference.astype(np.float32), job.task.test()[1])
    yield Score(job.name, "float32", np.inf, score, *count_int8(job.task.model), 0.0)
    comparer = None
    for method in job.options.methods:
        out = job.folder / f"{method}.onnx"
        chosen = () if method == DEFAULT else ("--method", method)
        row = scored(job, f"fusewright {method}", out, job.optimize(out, *chosen))
        yield row
        if method == DEFAULT and not row.error:
            comparer = Comparer(job, out, Figure(row.sqnr, row.score), Figure(np.inf, score))
    out = job.folder / "peer.onnx"
    for tool, argv in peers(job):
        out.unlink(missing_ok=True)
        again = functools.partial(run_peer, argv)
        row = scored(job, tool, out, again(out))
        yield row
        if comparer is not None and not row.error:
            yield comparer.compare(Peer(tool, out, Figure(row.sqnr, row.score), again))


def measure(name: str, task: Any, options: argparse.Namespace) -> Iterator[Score | SameOps]:
    """Prepares one task and measures it."""
    samples = options.samples or SAMPLES.get(name, 128)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(name, task, outputs(task, task.model), samples, Path(folder), options)
        np.savez(job.data, **{key: array[:samples] for key, array in task.calib().items()})
        yield from bench(job)


def parse() -> argparse.Namespace:
    """The command line's options."""
    beside = HERE.parent.parent / "shared" / "corpus"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help=f"default: {', '.join(SAMPLES)}")
    corpus = Path(os.environ.get("FUSEWRIGHT_CORPUS", beside))
    parser.add_argument("--corpus", type=Path, default=corpus)
    parser.add_argument(
        "--methods", nargs="*", default=[DEFAULT], help="default, minmax, percentile, ..."
    )
    parser.add_argument("--samples", type=int, help="calibration samples, the same for all tasks")
    parser.add_argument("--modelopt-python", help="interpreter that has nvidia-modelopt[onnx]")
    program = str(Path(sys.executable).with_name("fusewright"))
    parser.add_argument("--fusewright", default=program, help="the program to measure")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--min-gain", type=float, metavar="DB", help="over the best, same ops")
    return parser.parse_args()


def write(path: Path, scores: Sequence[Score], pairs: Sequence[SameOps]) -> None:
    """The figures as JSON."""
    compared = [asdict(pair) | {"gain": pair.gain, "gain_told": pair.gain_told} for pair in pairs]
    figures = {"scores": [asdict(score) for score in scores], "same_ops": compared}
    path.write_text(json.dumps(finite(figures), indent=1) + "\n")


def finite(value: Any) -> Any:
    """The same figures with None for what JSON cannot hold: infinity, and what is not there."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> int:
    """Measures, prints a line as each figure comes and the tables, writes the JSON."""
    options = parse()
    tasks = load_tasks(options.corpus)
    if not options.corpus.is_dir():
        print(f"no corpus at {options.corpus}: only the digits", file=sys.stderr)
    unknown = set(options.tasks) - set(tasks)
    if unknown:
        raise SystemExit(f"no task {', '.join(sorted(unknown))}; there are {', '.join(tasks)}")
    scores: list[Score] = []
    pairs: list[SameOps] = []
    print(f"{'task':30} {'tool':23} {'SQNR dB':>8} {'score':>7} {'int8':>8} {'wall s':>7}")
    for name in options.tasks or [name for name in SAMPLES if name in tasks]:
        for row in measure(name, tasks[name], options):
            if isinstance(row, SameOps):
                pairs.append(row)
                continue
            scores.append(row)
            figures = f"{row.sqnr:8.2f} {row.score:7.2f} {row.int8:4}/{row.heavy:<3}"
            line = row.error or f"{figures} {row.wall:7.1f}"
            print(f"{name:30} {row.tool:23} {line}", flush=True)
    print("\n".join(same_ops_lines(pairs)))
    if options.json:
        write(options.json, scores, pairs)
    missed = options.min_gain is not None and least_gain(pairs) < options.min_gain
    return 1 if missed or any(row.error for row in (*scores, *pairs)) else 0


if __name__ == "__main__":
    sys.exit(main())
