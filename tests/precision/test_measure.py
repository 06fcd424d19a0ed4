"""Ranges against brute force, in one pass, of tensors that may be empty or hold NaN too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from building import Net, as_model, feeds, run

from fusewright.calibrate.runner import CalibrationOptions
from fusewright.errors import DataError
from fusewright.graph.convert import to_proto
from fusewright.graph.workspace import Workspace
from fusewright.precision import measure, plan_half, what_to_measure


def _net() -> Net:
    net = Net()
    x = net.op("MatMul", net.input("x", 4, 8), net.draw(8, 8), name="linear")
    y = net.op("Transpose", net.op("Tanh", x, name="tanh"), perm=[1, 0], name="turned")
    scale = net.op("Add", net.op("Abs", y), 0.01, name="scale")
    net.op("Div", net.op("Reshape", x, [8, 4]), scale, name="ratio")
    return net


def _values(
    proto: onnx.ModelProto, names: list[str], samples: list[dict]
) -> list[list[np.ndarray]]:
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return [run(shown, sample) for sample in samples]


def test_against_brute_force() -> None:
    net = _net()
    proto = net.proto("ratio_y")
    samples = [feeds(proto, seed) for seed in range(4)]
    ranges = measure(as_model(proto).graph, samples, "fp16")
    assert ranges.samples == 4
    names = list(ranges.tensors)
    assert {"x", "linear_y", "tanh_y", "scale_y", "ratio_y"} <= set(names)
    assert "turned_y" not in names, "what only moves has the range of what it moves"
    seen = _values(proto, [n for n in names if n != "x"], samples)
    whole = {n: np.stack([s[i] for s in seen]) for i, n in enumerate(n for n in names if n != "x")}
    whole["x"] = np.stack([sample["x"] for sample in samples])
    for name, found in ranges.tensors.items():
        assert found.maximum == pytest.approx(np.abs(whole[name]).max(), rel=1e-5), name
    smallest = np.abs(whole["scale_y"]).min()
    assert ranges.tensors["scale_y"].smallest == pytest.approx(smallest, rel=1e-4)
    assert ranges.tensors["tanh_y"].smallest is None, "nothing is divided by it"


def test_the_graph_is_not_changed() -> None:
    model = as_model(_net().proto("ratio_y"))
    before = to_proto(model.graph).SerializeToString(deterministic=True)
    samples = [{"x": np.ones((4, 8), np.float32)}]
    ranges = measure(model.graph, samples, "fp16")
    plan_half(model.graph, ranges, "fp16")
    assert to_proto(model.graph).SerializeToString(deterministic=True) == before


def test_through_a_file_in_the_workspace() -> None:
    proto = _net().proto("ratio_y")
    samples, workspace = [feeds(proto)], Workspace()
    options = CalibrationOptions(data_folder=workspace.folder)
    found = measure(as_model(proto).graph, samples, "fp16", options)
    assert found == measure(as_model(proto).graph, samples, "fp16")
    workspace.close()


def test_tensors_that_may_be_empty() -> None:
    """Reductions refuse them; here no value passes the threshold on the first sample."""
    net = Net()
    x = net.op("Mul", net.input("x", 8), 2.0)
    place = net.op("NonZero", net.op("Greater", x, 10.0))
    picked = net.op("Neg", net.op("GatherND", x, net.op("Transpose", place, perm=[1, 0])))
    proto = net.proto(net.op("ReduceSum", net.op("Concat", picked, x, axis=0)))
    wanted = what_to_measure(as_model(proto).graph, "fp16")
    assert picked in wanted.fetched
    low, high = np.ones(8, np.float32), np.float32([1, 2, 3, 4, 5, 6, 7, 8])
    ranges = measure(as_model(proto).graph, [{"x": low}, {"x": high}], "fp16")
    assert ranges.tensors[picked].maximum == 16
    assert measure(as_model(proto).graph, [{"x": low}], "fp16").tensors[picked].maximum == 0


def test_what_is_not_finite_counts_as_infinite() -> None:
    net = Net()
    proto = net.proto(net.op("Relu", net.op("Log", net.input("x", 2), name="log")))
    model = as_model(proto)
    ranges = measure(model.graph, [{"x": np.float32([0, 1])}], "fp16")
    assert ranges.tensors["log_y"].maximum == np.inf
    plan = plan_half(model.graph, ranges, "fp16")
    assert "is not finite on the calibration data" in plan.float_nodes["log"]


def test_masks_count_with_what_they_become() -> None:
    net = Net()
    x = net.input("x", 4, 4)
    mask = np.triu(np.full((4, 4), -1e9, np.float32), 1)
    y = net.op("Add", net.op("MatMul", x, net.draw(4, 4)), mask, name="masked")
    model = as_model(net.proto(net.op("Softmax", y)))
    ranges = measure(model.graph, [{"x": np.ones((4, 4), np.float32)}], "fp16")
    assert list(ranges.masks) == [("masked", 1)]
    assert 49_000 < ranges.tensors["masked_y"].maximum < 49_200
    assert ranges.to_dict()["masks"] == [["masked", 1, pytest.approx(49128)]]


def test_no_samples() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        measure(as_model(_net().proto("ratio_y")).graph, [], "fp16")
