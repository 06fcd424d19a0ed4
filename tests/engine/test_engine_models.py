"""Trained models: every kernel is somebody's, and every group has its kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

import fusewright
from fusewright.calibrate import RandomSamples
from fusewright.engine.build import BuildOptions, build
from fusewright.engine.outline import HEAVY, Outline
from fusewright.engine.report import EngineReport
from fusewright.graph.load import read_source

MODELS = Path(__file__).resolve().parents[2] / "models"
RTX = BuildOptions(backend="tensorrt_rtx")


def _built(name: str, folder: Path, flat: bool = False) -> tuple[Outline, EngineReport]:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'fusewright[rtx]'")
    out = folder / f"{name}_{flat}.onnx"
    fusewright.optimize(MODELS / f"{name}.onnx", out, calibration=RandomSamples(2), flat=flat)
    return Outline(read_source(out).proto), build(out, None, RTX)


@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit", "digits_swin"])
def test_kernels_and_groups_are_accounted_for(name: str, tmp_path: Path) -> None:
    outline, report = _built(name, tmp_path)
    assert outline.kinds and {group.name for group in report.groups} == set(outline.kinds)
    for row in report.kernels:
        assert row.groups or row.nodes, row.kernel.name
        # The names that TensorRT prints are those of the outline.
        assert set(row.kernel.nodes) <= set(outline.nodes), row.kernel.name
    for group in report.groups:
        assert group.kernels, group.name
        heavy = [node for node in outline.members(group.name) if node.op in HEAVY]
        assert not heavy or not group.merged, group.name
        if group.planned is not None:
            assert set(group.reached) == {group.planned}, group.name


def test_a_flat_file_lists_its_nodes(tmp_path: Path) -> None:
    outline, report = _built("digits_cnn", tmp_path, flat=True)
    assert not outline.kinds and not report.groups
    assert all(row.nodes and not row.groups for row in report.kernels)
    _, calls = _built("digits_cnn", tmp_path)
    assert len(calls.kernels) == len(report.kernels)
    assert calls.activation_bytes == report.activation_bytes
