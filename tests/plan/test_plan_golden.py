"""Placements of real architectures, from both exporters, against the golden text.

To write the golden files anew, after reading the difference: FUSEWRIGHT_GOLDEN=write pytest ...
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from canonical import canonical
from planning import ROOT

import fusewright

GOLDEN = Path(__file__).resolve().parent / "golden"
COUNTS = {
    "resnet18": {
        "ConvBNAddAct": 8,
        "ConvBNActMaxPool": 1,
        "ConvBNAct": 8,
        "ConvBN": 3,
        "Linear": 1,
        "AdaptiveAvgPool": 1,
    },
    "mobilenet_v3_large": {
        "ConvBNAdd": 10,
        "ConvBNAct": 47,
        "LinearAct": 1,
        "ConvBN": 5,
        "Linear": 1,
        "AdaptiveAvgPool": 9,
    },
    "efficientnet_b0": {
        "ConvBNAdd": 9,
        "ConvBNAct": 65,
        "ConvBN": 7,
        "Linear": 1,
        "AdaptiveAvgPool": 17,
    },
}


@pytest.fixture(scope="session")
def zoo() -> ModuleType:
    missing = [n for n in ("torch", "torchvision", "onnxscript") if not importlib.util.find_spec(n)]
    if missing:
        pytest.skip(f"the zoo exports with {', '.join(missing)}, not installed here")
    models = str(ROOT / "models")
    if models not in sys.path:
        sys.path.insert(0, models)
    return importlib.import_module("zoo")


@pytest.mark.parametrize("name", COUNTS)
def test_both_exporters_give_the_golden_placement(
    name: str, zoo: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("golden")
    texts = {}
    for exporter in zoo.EXPORTERS:
        plan = fusewright.inspect(zoo.export(name, exporter, folder))
        assert plan.counts() == COUNTS[name], exporter
        assert plan.unclaimed == [], exporter
        texts[exporter] = canonical(plan)
    first, second = texts.values()
    assert first == second
    assert_golden(name, first)


# The residual stream is float, every Linear and attention INT8; each LayerNorm's output has a pair
# but for Swin's first, which starts the residual stream, and its last, which is pooled.
TRAINED = {
    "digits_vit": {
        "MHAInProjection": 4,
        "ScaledDotProductAttention": 4,
        "LayerNorm": 9,
        "LinearAct": 4,
        "ConvBN": 1,
        "Linear": 9,
    },
    "digits_swin": {
        "MHAInProjection": 4,
        "SwinWindowPartition": 4,
        "SwinWindowReverse": 4,
        "SwinAttention": 4,
        "LayerNorm": 11,
        "LinearAct": 4,
        "ConvBN": 1,
        "Linear": 10,
        "AdaptiveAvgPool": 1,
    },
}


@pytest.mark.parametrize("name", TRAINED)
def test_the_trained_transformers_have_the_golden_placement(name: str) -> None:
    plan = fusewright.inspect(ROOT / "models" / f"{name}.onnx")
    assert plan.counts() == TRAINED[name]
    assert plan.unclaimed == []
    assert_golden(name, canonical(plan))


def assert_golden(name: str, lines: list[str]) -> None:
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("FUSEWRIGHT_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert lines == golden.read_text(encoding="utf-8").splitlines()
