"""How recognising and collapsing scale: graphs of up to 33,000 Conv-BN-Relu triples.

    python tools/bench_scale.py                          # 3,300 and 33,000, in order and shuffled
    python tools/bench_scale.py 3300 --orders shuffled
    python tools/bench_scale.py 3300 --save G.onnx       # only writes the graph

The weights are tiny (4 channels, 1x1 kernels) and all distinct, so what is measured is the graph
work: `fusewright.optimize` at precision fp32, from the file to the collapsed file, proof included,
each graph in a process of its own. Shuffled nodes are out of order, as ONNX forbids but some tools
write them. Given are the seconds of every stage, and of the whole job without `clean`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

CHANNELS = 4
SIZE = 4
EPSILON = 1e-5
ORDERS = ("ordered", "shuffled")
# How far each triple is from a plain permutation of the channels: enough for all weights to
# differ, little enough for the input to show at the end of 33,000 of them.
NOISE = 1e-3


def triples(n: int, shuffle: bool = False, seed: int = 0) -> onnx.ModelProto:
    """A chain of `n` Conv-BN-Relu triples with distinct weights drawn from `seed`, opset 17.

    Input `input` and output `output` are float32 [batch, 4, 4, 4]; nodes are named `conv7`, `bn7`,
    `relu7`. `shuffle` orders the nodes at random, so the model is no longer a valid ONNX file.
    """
    model = helper.make_model(
        helper.make_graph([], "triples", [_value("input")], [_value("output")]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    graph, values = model.graph, _draw(n, np.random.default_rng(seed))
    for name, stacked in values.items():
        dims = stacked.shape[1:]
        for i, row in enumerate(stacked):
            raw = row.tobytes()
            kind = TensorProto.FLOAT
            graph.initializer.add(name=f"{name}{i}", data_type=kind, dims=dims, raw_data=raw)
    kernel = helper.make_attribute("kernel_shape", [1, 1])
    epsilon = helper.make_attribute("epsilon", EPSILON)
    for at in np.random.default_rng(seed).permutation(3 * n) if shuffle else range(3 * n):
        i, kind = divmod(int(at), 3)
        if kind == 0:
            source = f"r{i - 1}" if i else "input"
            inputs = [source, f"weight{i}", f"bias{i}"]
            node = graph.node.add(op_type="Conv", name=f"conv{i}", input=inputs, output=[f"c{i}"])
            node.attribute.append(kernel)
        elif kind == 1:
            inputs = [f"c{i}", *(f"{name}{i}" for name in ("gamma", "beta", "mean", "variance"))]
            node = graph.node.add(name=f"bn{i}", input=inputs, output=[f"b{i}"])
            node.op_type = "BatchNormalization"
            node.attribute.append(epsilon)
        else:
            output = f"r{i}" if i < n - 1 else "output"
            graph.node.add(op_type="Relu", name=f"relu{i}", input=[f"b{i}"], output=[output])
    return model


def _value(name: str) -> onnx.ValueInfoProto:
    shape = ["batch", CHANNELS, SIZE, SIZE]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _draw(n: int, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Weights of `n` triples, stacked on axis 0.

    The Conv permutes the channels, scales each and adds a bias; the BN undoes scale and bias. A
    chain of independent random layers would forget its input within a few hundred.
    """
    each = (n, CHANNELS)
    scale = rng.uniform(0.5, 2, each)
    permutation = np.eye(CHANNELS)[rng.permuted(np.tile(np.arange(CHANNELS), (n, 1)), axis=1)]
    weight = (permutation + rng.normal(0, NOISE, (*each, CHANNELS))) * scale[..., None]
    bias, variance = rng.normal(0, 0.1, each), rng.uniform(0.5, 1.5, each)
    drawn = {
        "weight": weight[..., None, None],
        "bias": bias,
        "gamma": np.sqrt(variance + EPSILON) / scale,
        "beta": rng.normal(0, NOISE, each),
        "mean": bias,
        "variance": variance,
    }
    return {name: values.astype(np.float32) for name, values in drawn.items()}


def measure(graph: Path) -> dict[str, float]:
    """Collapses the file `graph`; seconds of each stage, of the job, and the number of groups."""
    import fusewright

    start = time.perf_counter()
    out = graph.with_name("collapsed.onnx")
    samples = fusewright.RandomSamples(4)
    result = fusewright.optimize(graph, out, samples, precision="fp32")
    total = time.perf_counter() - start
    calls = len(result.model.graph.node)
    return {**result.trace.seconds, "total": total, "calls": calls, "peak": result.peak_bytes}


def bench(sizes: list[int], orders: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """The figures of every size and order."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for n, order in itertools.product(sizes, orders):
            path = folder / "triples.onnx"
            onnx.save(triples(n, order == "shuffled"), path)
            yield {"triples": n, "order": order, **pool.submit(measure, path).result()}


def describe(row: dict[str, Any]) -> str:
    """The lines printed for one row."""
    stages = {k: v for k, v in row.items() if isinstance(v, float) and k != "total"}
    job = row["total"] - row.get("clean", 0.0)
    matching = row["recognise"] + row["collapse"]
    per = 1e3 * matching / row["triples"]
    return (
        f"{row['triples']:6} {row['order']:9} without clean {job:6.1f} s;"
        f" recognise and collapse {matching:5.1f} s, {per:.2f} ms a triple;"
        f" {row['calls']} calls, {row['peak'] / 2**20:.0f} MB\n"
        "                 " + " ".join(f"{k} {v:.1f}" for k, v in stages.items())
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("triples", type=int, nargs="*", default=[3300, 33000])
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--save", type=Path, help="write the first graph there, and stop")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    if options.save:
        onnx.save(triples(options.triples[0], options.orders == ["shuffled"]), options.save)
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in bench(options.triples, options.orders, Path(folder)):
            rows.append(row)
            print(describe(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
