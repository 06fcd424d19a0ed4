"""The generator of large graphs in `tools/bench_scale.py`."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from bench_scale import triples


def _run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(None, {"input": images})
    return output


def test_a_long_chain_still_depends_on_its_input() -> None:
    model = triples(300)
    onnx.checker.check_model(model, full_check=True)
    images = np.random.default_rng(0).standard_normal((2, 4, 4, 4), np.float32)
    output = _run(model, images)
    assert np.isfinite(output).all()
    assert np.linalg.norm(output[0] - output[1]) > 0.1 * np.linalg.norm(output[0])


def test_weights_are_distinct() -> None:
    model = triples(50)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names)) == 6 * 50
    weights = {t.raw_data for t in model.graph.initializer if t.name.startswith("weight")}
    assert len(weights) == 50


def test_shuffle_moves_nodes_and_nothing_else() -> None:
    plain, shuffled = triples(50), triples(50, shuffle=True)
    order = [node.name for node in shuffled.graph.node]
    assert order != [node.name for node in plain.graph.node]
    nodes = {node.name: node for node in plain.graph.node}
    assert len(order) == len(nodes) == 150
    assert all(node == nodes[node.name] for node in shuffled.graph.node)
    assert shuffled.graph.initializer == plain.graph.initializer


def test_seed_decides() -> None:
    assert triples(3, seed=1) == triples(3, seed=1)
    assert triples(3, seed=1) != triples(3, seed=2)
