"""The normalizations of the corpus, written out by PyTorch and tf2onnx before opset 17."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from fusewright import inspect
from fusewright.pipeline.trace import Trace

# PyTorch 2.13 at opset 13 and 1.11 at opset 11 (over two axes), tf2onnx' Keras layer. Magika's
# other one runs over axis 1 of three and stays.
LAYER_NORMS = {
    "vit_mnist_ts13": 13,
    "mobilesr_x4_ts13": 10,
    "gtcrn_simple": 4,
    "magika_fast_v2_1": 1,
}
MOMENTS = {"vit_mnist_ts13": 0, "mobilesr_x4_ts13": 0, "gtcrn_simple": 0, "magika_fast_v2_1": 1}
EINSUMS = {"vit_mnist_ts13": 12, "mobilesr_x4_ts13": 10}


@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layer_norms(name: str, corpus: Path) -> None:
    trace = Trace()
    plan = inspect(corpus / "onnx" / f"{name}.onnx", trace=trace, precision="int8")
    assert plan.counts()["LayerNorm"] == LAYER_NORMS[name]
    assert plan.model.opset == 17
    assert sum(n.op == "Sqrt" and _is_variance(n) for n in plan.model.graph.nodes) == MOMENTS[name]
    reasons = [e.detail for e in trace if e.name == "LayerNormChain" and "other axes" in e.detail]
    assert len(reasons) == MOMENTS[name]


def _is_variance(node: object) -> bool:
    """Whether a root is taken of a mean and an epsilon."""
    shifted = node.inputs[0].inputs[0]
    return any(t.inputs and t.inputs[0].op == "ReduceMean" for t in shifted.inputs)


@pytest.mark.parametrize("name", EINSUMS)
def test_einsums_are_products(name: str, corpus: Path) -> None:
    path = corpus / "onnx" / f"{name}.onnx"
    assert sum(n.op_type == "Einsum" for n in onnx.load(path).graph.node) == EINSUMS[name]
    plan = inspect(path)
    assert not any(n.op == "Einsum" for n in plan.model.graph.nodes)
    assert plan.unclaimed == []
