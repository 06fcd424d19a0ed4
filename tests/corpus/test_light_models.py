"""The onnx package's Caffe2-era networks, with random weights, through the whole pipeline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import onnx
import pytest

from fusewright import RandomSamples, Result, optimize, strip_qdq
from fusewright.calibrate import open_samples
from fusewright.graph.load import read_source
from fusewright.verify import compare_models

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "models"))
from light import LIGHT, light

LARGE = {"light_bvlc_alexnet", "light_vgg19", "light_zfnet512"}
# Hundreds of layers: 5 to 10 s each.
SLOW = {"light_densenet121", "light_inception_v1", "light_inception_v2"}
COUNTS = {
    "light_bvlc_alexnet": {"ConvBNActMaxPool": 1, "ConvBNAct": 4, "LinearAct": 2, "Linear": 1},
    "light_zfnet512": {"ConvBNActMaxPool": 1, "ConvBNAct": 4, "LinearAct": 2, "Linear": 1},
    "light_vgg19": {"ConvBNActMaxPool": 5, "ConvBNAct": 11, "LinearAct": 2, "Linear": 1},
    "light_densenet121": {
        "ConvBNActMaxPool": 1,
        "ConvBNAct": 58,
        "ConvBN": 62,
        "AdaptiveAvgPool": 1,
    },
    "light_inception_v1": {"ConvBNActMaxPool": 1, "ConvBNAct": 56, "Linear": 1},
    "light_inception_v2": {
        "ConvBNActMaxPool": 2,
        "ConvBNAct": 67,
        "Linear": 1,
        "AdaptiveAvgPool": 1,
    },
    # As torchvision's resnet50.
    "light_resnet50": {
        "ConvBNAddAct": 16,
        "ConvBNActMaxPool": 1,
        "ConvBNAct": 32,
        "ConvBN": 4,
        "Linear": 1,
        "AdaptiveAvgPool": 1,
    },
    "light_shufflenet": {
        "ConvBNAddAct": 13,
        "ConvBNActMaxPool": 1,
        "ConvBNAct": 16,
        "ConvBN": 19,
        "Linear": 1,
        "AdaptiveAvgPool": 1,
    },
    "light_squeezenet": {"ConvBNActMaxPool": 1, "ConvBNAct": 25, "AdaptiveAvgPool": 1},
}


def _optimized(name: str, folder: Path, **settings: object) -> tuple[Path, Path, Result]:
    source, out = folder / "net.onnx", folder / "out.onnx"
    onnx.save(light(name), source)
    settings = {"precision": "int8", **settings}
    result = optimize(source, out, RandomSamples(1), verify_samples=1, **settings)
    return source, out, result


@pytest.mark.parametrize("name", LIGHT)
def test_light_model(name: str, tmp_path: Path) -> None:
    if name in LARGE | SLOW and not os.environ.get("FUSEWRIGHT_LARGE"):
        pytest.skip("hundreds of megabytes or of layers; set FUSEWRIGHT_LARGE=1 to run")
    source, out, result = _optimized(name, tmp_path)
    for stage, proof in result.proofs.items():
        assert stage == "verify" or proof.is_within(1e-5), (stage, proof.worst)
    assert result.trace.undone() == []
    if name in COUNTS:
        assert result.plan.counts() == COUNTS[name]
    assert result.plan.unclaimed == []
    for group in result.plan.groups:
        assert group.is_quantized or group.kind == "AdaptiveAvgPool" or "per group" in group.reason
    before = read_source(source).interface
    assert read_source(out).interface == before
    feeds = open_samples(RandomSamples(1), before.inputs).take(1)
    comparison, _ = compare_models(source, strip_qdq(out), feeds)
    assert comparison.is_within(1e-5), comparison.worst
