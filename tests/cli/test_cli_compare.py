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
    assert "worst sample" in made.out and ", median" in made.err
    common = ("compare", folder / "m.onnx", folder / "q.onnx", "--data")
    outcome = cli(*common, folder / "calib.npz", "--min-sqnr", 25)
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert "'map_y'" in outcome.err and "in the median sample" in outcome.err
    assert cli(*common, folder / "calib.npz", "--min-sqnr", 2).code == 0
    outcome = cli(*common, folder / "good.npz", "--min-sqnr", 25)
    assert outcome.code == 1 and "median" not in outcome.err, "all alike are bad"
