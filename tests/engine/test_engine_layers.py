"""Layer files of trtexec, from 8.4 to 11, become the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import layer_files
import pytest

from fusewright.engine.describe import describe
from fusewright.engine.layers import read_layers, read_times
from fusewright.engine.read import read_report
from fusewright.errors import EngineError


def _file(folder: Path, content: Any, name: str = "layers.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_version_8_4_has_names_only(tmp_path: Path) -> None:
    kernels = read_layers(_file(tmp_path, layer_files.VERSION_8_4))
    assert [k.nodes for k in kernels] == [
        ("QuantizeLinear_2",),
        ("conv1.weight", "QuantizeLinear_7", "Conv_9", "Add_12", "Relu_13"),
        ("Sigmoid_14", "Mul_15"),
    ]
    assert [[t.dtype for t in (*k.inputs, *k.outputs)] for k in kernels] == [
        ["Float", "Int8"],
        ["Int8", "Int8"],
        ["Int8", "Half"],
    ]
    plan = describe(kernels)
    assert [(k.operation, k.dtype) for k in plan.kernels] == [
        (None, None),
        ("conv", "Int8"),
        (None, None),
    ]
    assert [f.cause for f in plan.findings] == ["quantizes-input"]


def test_version_8_6_names_nodes(tmp_path: Path) -> None:
    kernels = read_layers(_file(tmp_path, layer_files.VERSION_8_6))
    assert [k.type for k in kernels] == ["Reformat", "CaskConvActPool"]
    assert kernels[1].nodes == ("conv1", "relu1") and kernels[0].nodes == ()
    plan = describe(kernels)
    assert plan.kernels[1].dtype == "Half"
    assert plan.kernels[0].inferred and plan.kernels[0].nodes == ("conv1", "relu1")
    assert [f.cause for f in plan.findings] == ["type-change"]


def test_version_10_names_groups(tmp_path: Path) -> None:
    report = read_report(_file(tmp_path, layer_files.VERSION_10))
    assert report.operations == {"attention": {"Int8": 1}, "gemm": {"Int8": 1}}
    assert [(g.name, g.kind, g.kernels, g.reached) for g in report.groups] == [
        ("/mlp/MatMul", "LinearAct", (1,), ("Int8",)),
        ("/attn/Softmax", "ScaledDotProductAttention", (2,), ("Int8",)),
    ]
    assert report.groups[0].reads == ("Int8",) and report.groups[0].writes == ("Half",)
    size = 32 * 8 * 8
    assert report.activation_bytes == (2 + 1) * size + (1 + 2) * size + 4 * 2 * 49 * 32
    assert "--model" in report.notes[0]


def test_version_11_splits_format_and_type(tmp_path: Path) -> None:
    report = read_report(_file(tmp_path, layer_files.VERSION_11))
    assert report.operations == {"conv": {"FP8": 1}}
    assert report.groups[0].kind == "ConvBN" and report.groups[0].writes == ("BFloat16",)
    assert report.weight_bytes == 32 * 32 * 9


def test_times(tmp_path: Path) -> None:
    layers = _file(tmp_path, layer_files.VERSION_8_4)
    times = _file(tmp_path, layer_files.PROFILE, "times.json")
    report = read_report(layers, profile=times)
    assert [k.milliseconds for k in report.kernels] == [0.1, 0.4, None]
    assert report.milliseconds == pytest.approx(0.5)


def test_sizes_are_not_known_with_dynamic_shapes(tmp_path: Path) -> None:
    layers = {"Layers": [dict(layer_files.VERSION_10["Layers"][0])]}
    layers["Layers"][0]["Inputs"] = [
        {"Name": "x", "Dimensions": [-1, 8], "Format/Datatype": "N/A due to dynamic shapes"}
    ]
    report = read_report(_file(tmp_path, layers))
    assert report.activation_bytes is None
    assert report.kernels[0].kernel.inputs[0].dtype == "?"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("hello", "not a JSON file"),
        ("[]", "not a layer file.*--exportLayerInfo"),
        ('{"Layers": 3}', "not a layer file"),
        ('{"Layers": ["a", "b"]}', "names of layers only.*--profilingVerbosity=detailed"),
        ('{"Layers": [{"LayerType": "x"}]}', "a row lacks 'Name'"),
        ('{"Layers": [{"Name": "x", "Inputs": [3]}]}', "not a layer file of trtexec"),
        ('{"schema": "fusewright.engine/0"}', "another version of Fusewright"),
        ('{"schema": "fusewright.engine/1"}', "not a whole report"),
    ],
)
def test_a_file_that_is_none(content: str, said: str, tmp_path: Path) -> None:
    path = _file(tmp_path, content)
    with pytest.raises(EngineError, match=said) as caught:
        read_report(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no\.json: cannot be read: No such file"):
        read_report(tmp_path / "no.json")


@pytest.mark.parametrize("content", ["{}", "[]", '[{"count": 3}]', '[{"name": "a"}]'])
def test_a_profile_that_is_none(content: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not a profile of trtexec"):
        read_times(_file(tmp_path, content))
