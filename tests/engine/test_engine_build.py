"""Engines that are really built, by TensorRT-RTX on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import engine_models
import onnx
import pytest

from fusewright.engine.build import BuildOptions, build
from fusewright.errors import EngineError, ModelError, OutputError, UsageError

pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
RTX = BuildOptions(backend="tensorrt_rtx")


def _save(tmp_path: Path, model: onnx.ModelProto, **options: object) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(model, path, **options)
    return path


def test_flat_and_collapsed_give_the_same_plan(tmp_path: Path) -> None:
    flat = build(_save(tmp_path, engine_models.parallel_convs(collapsed=False)), None, RTX)
    calls = build(_save(tmp_path, engine_models.parallel_convs(collapsed=True)), None, RTX)
    assert flat.operations == calls.operations == {"conv": {"Int8": 3}}
    assert len(flat.kernels) == len(calls.kernels)
    assert flat.activation_bytes == calls.activation_bytes
    assert all(row.nodes for row in flat.kernels + calls.kernels)
    assert not any(row.groups for row in flat.kernels)
    for group in ("left", "right", "after"):
        assert "conv" in [row.operation for row in calls.kernels_of(group)]
    names = ("left", "right", "after")
    assert flat.operators == {f"{name}/conv": "Int8" for name in names}
    assert calls.operators == {f"conv | {name} (ConvAct_0)": "Int8" for name in names}


def test_float_stays_float(tmp_path: Path) -> None:
    report = build(_save(tmp_path, engine_models.one_conv(quantized=False)), None, RTX)
    assert report.operations == {"conv": {"Float": 1}}


def test_a_quantized_weight_alone_does_not_reach_int8(tmp_path: Path) -> None:
    report = build(_save(tmp_path, engine_models.weight_only()), None, RTX)
    assert report.operations == {"conv": {"Float": 1}}
    assert report.operators == {"only/conv": "Float"}


def test_a_matrix_vector_product_has_no_gemm_kernel(tmp_path: Path) -> None:
    report = build(_save(tmp_path, engine_models.matrix_vector()), None, RTX)
    assert report.operations == {}
    assert report.operators == {"classifier": "generated"}


def test_engine_and_report_are_written(tmp_path: Path) -> None:
    model = _save(tmp_path, engine_models.one_conv())
    out = tmp_path / "net.engine"
    report = build(model, out, RTX)
    assert out.stat().st_size == report.engine_bytes > 1000
    written = json.loads((tmp_path / "net.engine.layers.json").read_text())
    assert written == json.loads(report.to_json())
    assert written["operations"] == {"conv": {"Int8": 1}}
    assert written["backend"] == "tensorrt_rtx" and written["version"]
    assert written["kernel_count"] == len(written["kernels"]) == len(report.kernels)
    assert 0 < report.seconds < 60
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.onnx", "net.engine", "net.engine.layers.json",
    ]  # fmt: skip


def test_external_data(tmp_path: Path) -> None:
    model = engine_models.one_conv()
    inside = build(_save(tmp_path, model), None, RTX)
    path = _save(tmp_path, model, save_as_external_data=True, location="w.bin", size_threshold=256)
    assert (tmp_path / "w.bin").stat().st_size > 0
    outside = build(path, None, RTX)
    assert outside.weight_bytes == inside.weight_bytes
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"w\.bin"):
        build(path, None, RTX)


def test_a_dynamic_batch(tmp_path: Path) -> None:
    path = _save(tmp_path, engine_models.one_conv(shape=["N", 16, 16, 16]))
    one = build(path, None, RTX)
    assert one.profiles == {"x": ((1, 16, 16, 16),) * 3}
    assert one.activation_bytes and "batch 1" in one.notes[0]
    shapes = {"x": ((1, 16, 16, 16), (4, 16, 16, 16), (8, 16, 16, 16))}
    many = build(path, None, BuildOptions("tensorrt_rtx", shapes))
    assert many.operations == one.operations == {"conv": {"Int8": 1}}
    assert many.activation_bytes is None and "dynamic" in many.notes[0]


def test_undeclared_dynamic_size(tmp_path: Path) -> None:
    path = _save(tmp_path, engine_models.one_conv(shape=["N", 16, "H", "W"]))
    with pytest.raises(EngineError, match=r"input 'x' \[N,16,H,W\].*--shapes x:MIN:OPT:MAX"):
        build(path, tmp_path / "e", RTX)
    assert not (tmp_path / "e").exists()
    fixed = {"x": ((1, 16, 8, 8),) * 3}
    assert build(path, None, BuildOptions("tensorrt_rtx", fixed)).activation_bytes


def test_compute_capability(tmp_path: Path) -> None:
    path = _save(tmp_path, engine_models.one_conv())
    report = build(path, None, BuildOptions("tensorrt_rtx", sm=89))
    assert report.operations == {"conv": {"Int8": 1}}
    with pytest.raises(UsageError, match=r"--sm 90: .* builds for SM .*89"):
        build(path, None, BuildOptions("tensorrt_rtx", sm=90))


def test_an_operator_it_does_not_take(tmp_path: Path) -> None:
    model = engine_models.one_conv()
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Mystery", "somewhere"
    model.opset_import.append(onnx.helper.make_opsetid("somewhere", 1))
    with pytest.raises(EngineError, match=r"node 'last' \(Mystery\): .*no such operator") as caught:
        build(_save(tmp_path, model), tmp_path / "e", RTX)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_failure_inside_a_group_names_the_group(tmp_path: Path) -> None:
    model = engine_models.parallel_convs(collapsed=True)
    model.functions[0].node[1].op_type = "Mystery"
    with pytest.raises(EngineError, match=r"'relu' \(Mystery\) in group 'left'.*and 2 more"):
        build(_save(tmp_path, model), None, RTX)


def test_a_zero_point_that_is_not_zero(tmp_path: Path) -> None:
    model = engine_models.one_conv()
    for tensor in model.graph.initializer:
        if tensor.name == "zero":
            tensor.ClearField("raw_data")
            tensor.int32_data[:] = [3]
    with pytest.raises(EngineError, match=r"\(QuantizeLinear\): .*zero-point is not 0"):
        build(_save(tmp_path, model), None, RTX)


def test_not_an_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"hello")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        build(path, None, RTX)
    with pytest.raises(ModelError, match=r"nowhere\.onnx"):
        build(tmp_path / "nowhere.onnx", None, RTX)


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    path = _save(tmp_path, engine_models.one_conv())
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is the input"):
        build(path, path, RTX)
    with pytest.raises(OutputError, match="there is no folder"):
        build(path, tmp_path / "missing" / "e", RTX)
    with pytest.raises(OutputError, match="is a folder"):
        build(path, tmp_path, RTX)
    assert path.read_bytes() == before


def test_shapes_of_an_input_that_is_not_there(tmp_path: Path) -> None:
    path = _save(tmp_path, engine_models.one_conv())
    with pytest.raises(UsageError, match=r"'y'.*inputs are x"):
        build(path, None, BuildOptions("tensorrt_rtx", {"y": ((1,),) * 3}))
