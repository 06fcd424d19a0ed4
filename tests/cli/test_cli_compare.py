"""What `compare --min-sqnr` asks for, and what it says."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from building import Net


@pytest.fixture
def loudly_calibrated(cli, tmp_path):
    """A model, its INT8 file of data with one image not divided by 255, and such data."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 3, 16, 16), 8, 3))
    onnx.save(net.proto(net.op("Identity", net.conv(x, 4, 8), name="map")), tmp_path / "m.onnx")
    images = np.random.default_rng(0).random((8, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "good.npz", x=images[4:])
    images[2] *= 255
    np.savez(tmp_path / "calib.npz", x=images)
    report = tmp_path / "r.json"
    made = cli("optimize", tmp_path / "m.onnx", "--calib", tmp_path / "calib.npz", "-o",
               tmp_path / "q.onnx", "--json", report)  # fmt: skip
    assert made.code == 0, made.err
    return tmp_path, made, json.loads(report.read_text())


def test_a_loud_image_hides_nothing(loudly_calibrated, cli):
    folder, made, report = loudly_calibrated
    found = report["proofs"]["verify"]["map_y"]
    assert found["sqnr_db"] > 30 and found["median_sqnr_db"] < 16
    assert found["worst_sample"]["sample"] != 2
    (note,) = report["notes"]
    assert note.startswith("calibration sample 2 (") and "calib.npz)" in note
    assert "worst sample" in made.out and ", median" in made.err
    common = ("compare", folder / "m.onnx", folder / "q.onnx", "--data")
    outcome = cli(*common, folder / "calib.npz", "--min-sqnr", 25)
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert "'map_y'" in outcome.err and "in the median sample" in outcome.err
    assert cli(*common, folder / "calib.npz", "--min-sqnr", 2).code == 0
    outcome = cli(*common, folder / "good.npz", "--min-sqnr", 25)
    assert outcome.code == 1 and "median" not in outcome.err, "all alike are bad"


def test_a_loud_row_of_a_batch_hides_nothing(cli, tmp_path):
    def save(name, noise):
        net = Net(17)
        y = net.op("MatMul", net.input("x", 4, 8), net.draw(8, 4))
        onnx.save(net.proto(net.op("Add", y, np.float32(noise))), tmp_path / name)

    save("a.onnx", 0.0)
    save("b.onnx", 1.0)
    x = np.random.default_rng(0).standard_normal((1, 4, 8)).astype(np.float32)
    x *= np.float32([0.1, 1000, 1, 1])[:, None]
    np.savez(tmp_path / "data.npz", x=x)
    common = ("compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--data", tmp_path / "data.npz")
    outcome = cli(*common)
    assert outcome.code == 0, outcome.err
    assert "(sample 0, row 0)" in outcome.out
    assert "over 1 sample of 4 rows in all" in " ".join(outcome.out.split())
    outcome = cli(*common, "--min-sqnr", 30)
    assert outcome.code == 1 and "in the median sample" in outcome.err


def _detector(head):
    """A layer of scores with a near tie, and a head behind it."""
    net = Net(17)
    x = net.op("Relu", net.conv(net.input("x", 1, 3, 8, 8), 16, 3))
    maps = net.op("Reshape", net.conv(x, 8, 16, 1, name="maps"), [8, 64])
    scores = net.op("ReduceMax", maps, axes=[0], keepdims=0, name="scores")
    if head == "topk":
        best, which = net.op("TopK", scores, [9], outputs=2, axis=0, name="topk")
        return net.proto(net.op("Gather", maps, which, axis=1, name="boxes"), best, which)
    if head == "argmax":
        return net.proto(net.op("ArgMax", maps, axis=0, keepdims=0, name="classes"))
    proto = net.proto(maps)
    plugin = onnx.helper.make_node("Plugin", [scores, maps], ["y"], "plugin", domain="odd")
    proto.graph.node.append(plugin)
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, [9]))
    proto.opset_import.append(onnx.helper.make_opsetid("odd", 1))
    return proto


@pytest.mark.parametrize("precision", ["int8", "int8+fp16", "fp8+fp16", "fp16", "int8+bf16"])
@pytest.mark.parametrize("head", ["topk", "argmax", "plugin"])
def test_detectors_have_figures(head, precision, cli, tmp_path):
    onnx.save(_detector(head), tmp_path / "m.onnx")
    images = np.random.default_rng(0).random((8, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=images)
    data, report = ("--calib", tmp_path / "d.npz"), tmp_path / "r.json"
    target = ("--target", "rtx:l4") if precision.startswith("fp8") else ()
    made = cli("optimize", tmp_path / "m.onnx", *data, "-o", tmp_path / "q.onnx", "--json", report,
               "--precision", precision, *target)  # fmt: skip
    assert made.code == 0, made.err
    found = json.loads(report.read_text())
    outputs, selections = found["proofs"]["verify"], found["selections"]
    common = ("compare", tmp_path / "m.onnx", tmp_path / "q.onnx", "--data", tmp_path / "d.npz")
    outcome = cli(*common, "--min-sqnr", 15)
    assert outcome.code == 0, outcome.err
    told = json.loads(cli(*common, "--json").out)
    assert set(told) == {"first", "second", "outputs", "selections"}
    if head == "topk":
        assert outputs["boxes_y"]["sqnr_db"] > 15 and outputs["topk_y"]["sqnr_db"] > 15
    elif head == "plugin":
        assert not selections and "Plugin 'plugin' is not run" in made.out
        assert outputs["scores_y"]["in_front_of"] == "Plugin 'plugin'"
        assert min(output["sqnr_db"] for output in outputs.values()) > 15
    else:
        (front,) = (o for o in outputs.values() if "in_front_of" in o)
        assert front["in_front_of"] == "ArgMax 'classes'" and front["sqnr_db"] > 15
    if precision == "int8" and head != "plugin":
        if head == "argmax":
            assert outputs["classes_y"]["selected_by"] == "ArgMax 'classes'"
        assert selections and "selects otherwise" in made.out and "in front of it" in outcome.out
        outcome = cli(*common, "--min-sqnr", 90)
        assert outcome.code == 1 and "has" in outcome.err
