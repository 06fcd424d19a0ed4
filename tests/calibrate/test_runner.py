"""The runner against plain fetching of the same tensors."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusewright.calibrate.exposing import outline, serialized
from fusewright.calibrate.ranges import Ranges
from fusewright.calibrate.runner import CalibrationOptions, Observations, calibrate, observe
from fusewright.calibrate.samples import open_samples
from fusewright.errors import DataError, ModelError, UsageError
from fusewright.graph.session import TensorSpec

RNG = np.random.default_rng(3)
DATA = RNG.standard_normal((12, 3, 8, 8)).astype(np.float32)
INPUTS = (TensorSpec("x", np.dtype(np.float32), ("N", 3, 8, 8)),)
SITES = {"x": ["x"], "conv": ["c1"], "shared": ["r1", "c2"], "out": ["y"]}


def network() -> onnx.ModelProto:
    """x → Conv c1 → Relu r1 → Conv c2 → Add(r1) s → ReduceMean y, and Log of x on the side."""
    weights = [
        numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w1", (4, 3, 3, 3)), ("w2", (4, 4, 3, 3)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["s"]),
        helper.make_node("ReduceMean", ["s"], ["y"], axes=[2, 3]),
        helper.make_node("Log", ["x"], ["log"]),
        helper.make_node("Shape", ["x"], ["dims"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 1, 1])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


MODEL = network()


def fetched(names: list[str]) -> list[np.ndarray]:
    model = onnx.ModelProto.FromString(MODEL.SerializeToString())
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(names, {"x": DATA})


def ranges(model=MODEL, source=None, sites=SITES, **options) -> Ranges:
    samples = open_samples(source or {"x": DATA}, INPUTS)
    return calibrate(model, sites, samples, CalibrationOptions(**options))


def test_minmax_is_the_maximum_of_each_site():
    found = ranges(method="minmax")
    c1, r1, c2, y = fetched(["c1", "r1", "c2", "y"])
    expected = {
        "x": (DATA,),
        "conv": (c1,),
        "shared": (r1, c2),
        "out": (y,),
    }
    assert list(found) == list(SITES) and found.samples == 12
    for site, arrays in expected.items():
        assert found[site].maximum == pytest.approx(max(np.abs(a).max() for a in arrays), rel=1e-5)
        assert found[site].count == sum(a.size for a in arrays)
        assert found[site].threshold == found[site].maximum


def test_mse_clips_somewhere_below_the_maximum():
    found = ranges()
    assert found.method == "mse"
    assert all(0 < r.threshold <= r.maximum for r in found.values())
    assert any(r.threshold < r.maximum for r in found.values())


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile", "entropy"])
def test_batches_order_and_files_do_not_matter(method, tmp_path):
    whole = ranges(method=method).to_dict()
    for k, part in enumerate(np.split(DATA[::-1], [5, 6])):
        np.savez_compressed(tmp_path / f"{k}.npz", x=part)
    assert ranges(method=method, source=tmp_path).to_dict() == whole
    assert ranges(method=method, source={"x": DATA.reshape(4, 3, 3, 8, 8)}).to_dict() == whole


@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_merged_parts_equal_the_whole(method):
    options = CalibrationOptions(method=method)
    parts = [
        observe(MODEL, SITES, open_samples({"x": part}, INPUTS), options).state()
        for part in np.split(DATA, [3, 4])
    ]
    merged = Observations.from_state(json.loads(json.dumps(parts[2])))
    for part in parts[:2]:
        merged.merge(Observations.from_state(part))
    assert merged.ranges(options).to_dict() == ranges(method=method).to_dict()


def test_parts_that_do_not_belong_together():
    samples = open_samples({"x": DATA}, INPUTS)
    part = observe(MODEL, {"x": ["x"]}, samples)
    with pytest.raises(DataError, match="different sites"):
        part.merge(observe(MODEL, {"c": ["c1"]}, samples))
    with pytest.raises(DataError, match="different methods"):
        part.merge(observe(MODEL, {"x": ["x"]}, samples, CalibrationOptions("minmax")))
    with pytest.raises(DataError, match="not the state"):
        Observations.from_state({"sites": {}})


def test_path_bytes_and_proto_agree_and_the_file_stays(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(MODEL.SerializeToString())
    before = path.read_bytes()
    expected = ranges().to_dict()
    assert ranges(model=path).to_dict() == expected
    assert ranges(model=before).to_dict() == expected
    assert path.read_bytes() == before


@pytest.mark.skipif(
    tuple(map(int, ort.__version__.split(".")[:2])) < (1, 24),
    reason="onnxruntime before 1.24 looks for external data beside the session's own file only",
)
def test_external_data_is_found_beside_the_file(tmp_path, monkeypatch):
    inner = tmp_path / "inner"
    inner.mkdir()
    onnx.save_model(
        onnx.ModelProto.FromString(MODEL.SerializeToString()),
        inner / "m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    assert (inner / "w.bin").stat().st_size > 0
    monkeypatch.chdir(tmp_path)
    expected = ranges().to_dict()
    assert ranges(model=inner / "m.onnx").to_dict() == expected
    data = (inner / "m.onnx").read_bytes()
    assert ranges(model=data, data_folder=inner).to_dict() == expected


def test_only_the_feed_is_needed_where_all_sites_are_inputs():
    found = ranges(sites={"x": ["x"]}, method="minmax")
    assert found["x"].maximum == float(np.abs(DATA).max())


def test_progress_and_limit():
    calls: list[int] = []
    samples = open_samples({"x": DATA}, INPUTS)
    found = calibrate(MODEL, SITES, samples, CalibrationOptions(samples=5), calls.append)
    assert calls == [1, 2, 3, 4, 5] and found.samples == 5
    assert found.to_dict() == ranges(source={"x": DATA[:5]}).to_dict()


def test_plain_lists_of_feeds_work():
    feeds = [{"x": DATA[k : k + 1]} for k in range(12)]
    assert calibrate(MODEL, SITES, feeds).to_dict() == ranges().to_dict()


def test_ranges_survive_json():
    found = ranges()
    again = Ranges.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found and dict(again) == dict(found)
    with pytest.raises(DataError, match="not calibration ranges"):
        Ranges.from_dict({"sites": {"a": 1}})


@pytest.mark.parametrize(
    ("sites", "error", "message"),
    [
        ({"s": ["nowhere"]}, ModelError, "'nowhere' to calibrate is not in the model"),
        ({"s": ["w1"]}, ModelError, "'w1' to calibrate is not in the model"),
        (
            {"s": ["log"]},
            DataError,
            r"sample 0 \(calibration data\): tensor 'log' holds NaN or Inf",
        ),
        ({"s": ["dims"]}, DataError, "'dims' is int64"),
        ({"s": []}, DataError, "site 's': its tensors were empty"),
    ],
)
def test_bad_sites(sites, error, message):
    with pytest.raises(error, match=message):
        ranges(sites=sites)


def test_no_samples_and_feeds_that_do_not_fit():
    with pytest.raises(DataError, match="no calibration samples"):
        calibrate(MODEL, SITES, [])
    with pytest.raises(DataError, match=r"^calibration sample 0: onnxruntime fails: "):
        calibrate(MODEL, {"c": ["c1"]}, [{"x": DATA[:1, :2]}])


def test_models_that_cannot_be_read(tmp_path):
    for data in (b"hello world, no model", MODEL.SerializeToString()[:-50]):
        with pytest.raises(ModelError):
            ranges(model=data)
    with pytest.raises(ModelError, match=r"none\.onnx: cannot be read"):
        ranges(model=tmp_path / "none.onnx")


@pytest.mark.parametrize(
    "options", [{"method": "max"}, {"percentile": 0.0}, {"percentile": 101}, {"samples": 0}]
)
def test_options_that_cannot_be(options):
    with pytest.raises(UsageError):
        CalibrationOptions(**options)


def test_outline_sees_what_protobuf_sees():
    found = outline(serialized(MODEL))
    assert found.inputs == ("x",) and found.outputs == ("y",)
    assert found.tensors == {"c1", "r1", "c2", "s", "y", "log", "dims"}


def test_resnet20_of_the_corpus(tasks):
    """Calibration through npz-like data equals the maximum that onnxruntime gives directly."""
    task = tasks.TASKS["resnet20_cifar10_ts13_bn"]
    data = {"input": task.calib()["input"][:16]}
    graph = onnx.load(task.model).graph
    weights = {w.name for w in graph.initializer}
    tensors = [n.input[0] for n in graph.node if n.op_type == "Conv" and n.input[0] not in weights]
    inputs = (TensorSpec("input", np.dtype(np.float32), ("N", 3, 32, 32)),)
    sites = {name: [name] for name in tensors}
    options = CalibrationOptions("minmax")
    found = calibrate(task.model, sites, open_samples(data, inputs), options)
    model = onnx.load(task.model)
    names = [name for name in dict.fromkeys(tensors) if name != "input"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(model.SerializeToString())
    for name, value in zip(names, session.run(names, data), strict=True):
        assert found[name].maximum == pytest.approx(np.abs(value).max(), rel=1e-4)
        assert found[name].count == value.size
