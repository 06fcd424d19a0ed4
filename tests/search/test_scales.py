"""Scales of any placement from one look at the data."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from fusewright.calibrate import CalibrationOptions, calibrate, observe
from fusewright.quantize.placement import Placement, Site
from fusewright.search import Scales

METHODS = ("mse", "minmax", "percentile", "entropy")


def _model() -> onnx.ModelProto:
    """a = 2x, b = tanh(x), c = relu(b)."""
    row = onnx.TensorProto.FLOAT, (1, 64)
    nodes = [
        helper.make_node("Add", ["x", "x"], ["a"]),
        helper.make_node("Tanh", ["x"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
    ]
    outputs = [helper.make_tensor_value_info(name, *row) for name in "ac"]
    inputs = [helper.make_tensor_value_info("x", *row)]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _placement(format_: str = "int8") -> Placement:
    sites = tuple(Site(name, (("n", 0),), name, format_) for name in ("a", "b"))
    return Placement(sites, (), {"a": ("a", "c"), "b": ("b",)})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format_", ["int8", "fp8"])
def test_as_if_calibrated_for_it(method: str, format_: str) -> None:
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((1, 64)).astype(np.float32)} for _ in range(5)]
    placement, model = _placement(format_), _model()
    plain = CalibrationOptions(method)
    seen = observe(model, {name: (name,) for name in "abc"}, feeds, plain)
    whole = CalibrationOptions(method, formats=placement.formats)
    expected = calibrate(model, placement.observe, feeds, whole)
    scales = Scales(seen, plain)
    found = scales.ranges(placement)
    assert dict(found.sites) == dict(expected.sites)
    assert found.samples == 5
    assert scales.ranges(placement) == found, "merging leaves what was seen as it was"


def test_the_digest_names_the_data() -> None:
    digests = set()
    for seed in (0, 0, 1):
        random = np.random.default_rng(seed)
        feeds = [{"x": random.standard_normal((1, 64)).astype(np.float32)}]
        seen = observe(_model(), {"a": ("a",)}, feeds)
        digests.add(Scales(seen, CalibrationOptions()).digest())
    assert len(digests) == 2
