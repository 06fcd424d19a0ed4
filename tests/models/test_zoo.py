"""The zoo: one architecture through both exporters, and the table itself."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    missing = [n for n in ("torch", "torchvision", "onnxscript") if not importlib.util.find_spec(n)]
    if missing:
        pytest.skip(f"the zoo exports with {', '.join(missing)}, not installed here")
    return importlib.import_module("zoo")


@pytest.fixture(scope="module")
def resnet18(zoo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("zoo")
    return {exporter: zoo.export("resnet18", exporter, folder) for exporter in zoo.EXPORTERS}


def test_both_exporters_write_the_same_network(resnet18: dict[str, Path]) -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 224, 224), np.float32)
    outputs = {}
    for exporter, path in resnet18.items():
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == ["batch", 3, 224, 224], exporter
        (outputs[exporter],) = session.run(None, {"input": images})
    one, other = outputs.values()
    assert one.shape == (3, 1000)
    assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one)
    # Samples differ in the answer: neither dead nor saturated.
    assert np.linalg.norm(one[0] - one[1]) > 0.01 * np.linalg.norm(one[0])


def test_operators(resnet18: dict[str, Path]) -> None:
    for exporter, path in resnet18.items():
        counts = Counter(node.op_type for node in onnx.load(path).graph.node)
        assert counts["Conv"] == 20, exporter
        assert counts["Relu"] == 17, exporter
        assert counts["Add"] == 8, exporter


def test_batch_norm_can_be_kept(zoo: ModuleType, tmp_path: Path) -> None:
    path = zoo.export("resnet18", "torchscript", tmp_path / "kept.onnx", keep_batch_norm=True)
    counts = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert counts["BatchNormalization"] == 20
    with pytest.raises(ValueError, match="torchscript"):
        zoo.export("resnet18", "dynamo", tmp_path, keep_batch_norm=True)


def test_table_holds_what_the_issue_names(zoo: ModuleType) -> None:
    named = {"resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny"}
    named |= {"densenet121", "googlenet", "regnet_y_400mf", "vit_b_16", "swin_t"}
    named |= {"vit_small_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"}
    assert named | {"hf_vit_sdpa", "hf_swin", "hf_bert_eager", "hf_gpt2", "hf_detr"} <= set(zoo.ZOO)


def test_unknown_exporter(zoo: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torchscript, dynamo"):
        zoo.export("resnet18", "tf2onnx", tmp_path)
