"""What a whole quantization costs next to plain inference over the same samples.

    python tools/bench_cost.py                                  # resnet18 of the zoo, needs torch
    python tools/bench_cost.py --model M.onnx --shape 3x32x32   # any model with one float input
    python tools/bench_cost.py --samples 16 128 512 --repeat 5 --modelopt-python VENV/bin/python

Each row is a process of its own, from start to exit, imports included. `plain` (tools/peers.py)
loads the model and runs the samples one by one from `np.load`, so its memory holds the whole npz;
it is the floor the others are compared with. Then `fusewright optimize` once per --method,
onnxruntime.quantization and, given an interpreter that has it, ModelOpt. Rows take turns within
each repetition, so that a busy machine hits all alike; wall time and peak memory (maximum resident
set, of the process and of what it started) are medians. Exit code 1 if any row failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path

# Nothing but the standard library here: a child's peak counts from the size of its parent.
HERE = Path(__file__).resolve().parent
MAKE_DATA = """
import sys
import numpy as np
path, name, count, shape = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
shape = [count, *map(int, shape.split("x"))]
np.savez(path, **{name: np.random.default_rng(0).standard_normal(shape, np.float32)})
"""


@dataclass(frozen=True)
class Row:
    """One thing to measure: `command` takes the model, the samples' npz and the output file."""

    name: str
    command: tuple[str, ...]
    most_samples: int | None = None

    def argv(self, model: Path, data: Path, out: Path, samples: int) -> list[str]:
        """The command line, its placeholders filled in."""
        values = {"model": model, "data": data, "out": out, "samples": samples}
        return [part.format(**values) for part in self.command]


@dataclass
class Cost:
    """What the runs of one row at one number of samples took; seconds and MB (2**20 bytes)."""

    row: str
    samples: int
    walls: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def wall(self) -> float:
        """Median wall time in seconds."""
        return statistics.median(self.walls)

    @property
    def peak(self) -> float:
        """Median peak memory in MB."""
        return statistics.median(self.peaks)


def rows(options: argparse.Namespace) -> list[Row]:
    """What is to be measured, the floor first."""
    python, peers = sys.executable, str(HERE / "peers.py")
    job = ("{model}", "{data}", "-o", "{out}")
    found = [Row("plain", (python, peers, "plain", "{model}", "{data}"))]
    for method in options.method:
        command = (options.fusewright, "optimize", "{model}", "--calib", "{data}", "-o", "{out}")
        chosen = ("--precision", "int8")  # what the others make
        chosen += () if method == "default" else ("--method", method)
        found.append(Row(f"fusewright {method}", (*command, "--samples", "{samples}", *chosen)))
    limit = options.peers_up_to
    for method in ("minmax", "entropy"):
        command = (python, peers, "onnxruntime", *job, "--method", method)
        found.append(Row(f"onnxruntime {method}", command, limit))
    for method in ("max", "entropy") if options.modelopt_python else ():
        command = (options.modelopt_python, peers, "modelopt", *job, "--method", method)
        found.append(Row(f"modelopt {method}", command, limit))
    return [row for row in found if not options.only or row.name.split()[0] in options.only]


def measure(argv: list[str], log: Path) -> tuple[float, float, str | None]:
    """Runs `argv`; gives wall seconds, peak MB and, where it failed, its last line."""
    with log.open("wb") as sink:
        start = time.perf_counter()
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    error = None
    if child.returncode != 0:
        lines = log.read_text(errors="replace").strip().splitlines() or ["(no output)"]
        error = f"exit {child.returncode}: {lines[-1][:200]}"
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return wall, usage.ru_maxrss / unit, error


def bench(options: argparse.Namespace, folder: Path) -> list[Cost]:
    """Measures every row at every number of samples, interleaved."""
    model = options.model or export_resnet18(folder)
    found = {
        (row.name, samples): Cost(row.name, samples)
        for samples in options.samples
        for row in rows(options)
        if row.most_samples is None or samples <= row.most_samples
    }
    for samples, row in turns(options, folder):
        cost = found.get((row.name, samples))
        if cost is None or cost.error:
            continue
        argv = row.argv(model, folder / f"{samples}.npz", folder / "out.onnx", samples)
        wall, peak, cost.error = measure(argv, folder / "log.txt")
        if not cost.error:
            cost.walls.append(wall)
            cost.peaks.append(peak)
        print(f"  {row.name:22} {samples:5}  {cost.error or f'{wall:.2f} s'}", file=sys.stderr)
    return list(found.values())


def turns(options: argparse.Namespace, folder: Path) -> Iterator[tuple[int, Row]]:
    """Numbers of samples, their data made before and removed after; repetitions; rows."""
    for samples in options.samples:
        data = folder / f"{samples}.npz"
        arguments = [str(data), options.input, str(samples), options.shape]
        subprocess.run([sys.executable, "-c", MAKE_DATA, *arguments], check=True)
        for _ in range(options.repeat):
            yield from ((samples, row) for row in rows(options))
        data.unlink()


def export_resnet18(folder: Path) -> Path:
    """Exports the zoo's resnet18 with a dynamic batch, in a process of its own."""
    zoo = str(HERE.parent / "models" / "zoo.py")
    argv = [sys.executable, zoo, "resnet18", "--exporter", "torchscript", "-o", str(folder)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return folder / "resnet18_torchscript.onnx"


def table(costs: list[Cost]) -> str:
    """The costs as a table, each also as a multiple of plain inference over as many samples."""
    floor = {cost.samples: cost for cost in costs if cost.row == "plain" and cost.walls}
    lines = [f"{'':22} {'samples':>7} {'wall s':>8} {'x plain':>8} {'peak MB':>8} {'x plain':>8}"]
    for cost in costs:
        head = f"{cost.row:22} {cost.samples:7}"
        if cost.error:
            lines.append(f"{head}  {cost.error}")
            continue
        base = floor.get(cost.samples)
        wall, peak = cost.wall / base.wall if base else nan, cost.peak / base.peak if base else nan
        lines.append(f"{head} {cost.wall:8.2f} {wall:8.2f} {cost.peak:8.0f} {peak:8.2f}")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="default: resnet18 of the zoo, exported afresh")
    parser.add_argument("--input", default="input", help="name of the model's input")
    parser.add_argument("--shape", default="3x224x224", help="of one sample")
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 128, 512])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--method", nargs="+", default=["default"], help="of fusewright")
    parser.add_argument("--only", nargs="+", help="tools to measure: plain, fusewright, ...")
    parser.add_argument("--modelopt-python", help="interpreter that has nvidia-modelopt[onnx]")
    parser.add_argument(
        "--peers-up-to",
        type=int,
        default=128,
        help="samples beyond which the peers, which hold every activation, are left out",
    )
    beside = Path(sys.executable).with_name("fusewright")
    parser.add_argument("--fusewright", default=str(beside), help="the program to measure")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    return parser.parse_args()


def main() -> int:
    """Measures, prints the table, writes the JSON."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        costs = bench(options, Path(folder))
    print(table(costs))
    if options.json:
        machine = {"cores": os.cpu_count(), "machine": platform.machine()}
        report = {"machine": machine, "rows": [asdict(cost) for cost in costs]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if any(cost.error for cost in costs) else 0


if __name__ == "__main__":
    sys.exit(main())
