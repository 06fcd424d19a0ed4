"""Reports are read back as they were written, and compared by group."""

from __future__ import annotations

import json
from pathlib import Path

import engine_models
import onnx
import pytest

from fusewright.engine.build import BuildOptions, build
from fusewright.engine.compare import compare_engines
from fusewright.engine.read import read_report
from fusewright.engine.report import EngineReport
from fusewright.errors import UsageError

RTX = BuildOptions(backend="tensorrt_rtx")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EngineReport]:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    folder = tmp_path_factory.mktemp("engines")
    reports = {}
    models = {
        "calls": engine_models.parallel_convs(collapsed=True),
        "flat": engine_models.parallel_convs(collapsed=False),
    }
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
        reports[name] = build(folder / f"{name}.onnx", folder / f"{name}.engine", RTX)
    return reports


def _layers(report: EngineReport) -> Path:
    return Path(f"{report.engine}.layers.json")


def test_a_report_is_read_back_whole(built: dict[str, EngineReport]) -> None:
    for report in built.values():
        read = read_report(_layers(report))
        assert read.to_dict() == report.to_dict()
        assert read.findings == report.findings and read.groups == report.groups


def test_every_kernel_and_every_group_is_accounted_for(built: dict[str, EngineReport]) -> None:
    for report in built.values():
        assert all(row.groups or row.nodes for row in report.kernels)
        assert all(group.kernels for group in report.groups)
    assert {group.name for group in built["calls"].groups} == {"left", "right", "after"}
    for group in built["calls"].groups:
        # `ConvAct` is no kind of the catalogue; any function of ours is a group.
        assert group.planned == "Int8" and group.reached == ("Int8",)
        assert group.qdq and group.activation_bytes


def test_a_whole_report_needs_no_model(built: dict[str, EngineReport]) -> None:
    path = _layers(built["calls"])
    with pytest.raises(UsageError, match="whole report"):
        read_report(path, model=Path(built["calls"].model))


def test_an_engine_beside_itself(built: dict[str, EngineReport]) -> None:
    comparison = compare_engines(built["calls"], built["calls"])
    assert len(comparison.groups) == 3
    assert not any(row.differs for row in (*comparison.groups, comparison.total))
    plain = json.loads(json.dumps(comparison.to_dict()))
    assert plain["total"]["first"]["kernels"] == len(built["calls"].kernels)


def test_groups_are_found_in_a_flat_file(tmp_path: Path, built: dict[str, EngineReport]) -> None:
    """A group has the name of a node, and the flat file has that node."""
    model = engine_models.parallel_convs(collapsed=False)
    for node in model.graph.node:
        node.name = node.name.removesuffix("/conv")
    onnx.save(model, tmp_path / "named.onnx")
    flat = build(tmp_path / "named.onnx", None, RTX)
    comparison = compare_engines(built["calls"], flat)
    assert [row.name for row in comparison.groups] == ["left", "right", "after"]
    for row in comparison.groups:
        assert row.first and row.second and row.first.dtypes == row.second.dtypes == ("Int8",)
    assert comparison.total.first == comparison.total.second


def test_float_against_int8(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    reports = []
    for quantized in (False, True):
        onnx.save(engine_models.one_conv(quantized=quantized), tmp_path / "m.onnx")
        reports.append(build(tmp_path / "m.onnx", None, RTX))
    comparison = compare_engines(*reports)
    assert comparison.total.differs and comparison.groups == ()
    sides = (comparison.outside.first, comparison.outside.second)
    assert [side.dtypes for side in sides if side] == [("Float",), ("Int8",)]
    assert comparison.total.first.activation_bytes == reports[0].activation_bytes
