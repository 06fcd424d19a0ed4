"""One model, any exporter: the same groups, the same Q/DQ sites, and the same results."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_NEEDED = ("torch", "torchvision", "timm", "transformers", "onnxscript")
_MISSING = [name for name in _NEEDED if not importlib.util.find_spec(name)]
if _MISSING:
    pytest.skip(f"exports with {', '.join(_MISSING)}, not installed here", allow_module_level=True)

from architectures import ZOO, Spec  # noqa: E402
from spellings import (  # noqa: E402
    OLDEST,
    SDPA,
    Agreement,
    Spelled,
    dynamo,
    optimized,
    slimmed,
    torchscript,
)
from tiny import TINY  # noqa: E402

Counts = dict[str, int]


def _vit(blocks: int) -> Counts:
    """Patches, blocks, a last norm, a classifier."""
    return {
        "MHAInProjection": blocks,
        "ScaledDotProductAttention": blocks,
        "LayerNorm": 2 * blocks + 1,
        "LinearAct": blocks,
        "ConvBN": 1,
        "Linear": 2 * blocks + 1,
    }


def _text(blocks: int, pooled: bool = True) -> Counts:
    """Blocks, a norm of the embeddings or at the end, a pooler with its activation, a head."""
    counts = _vit(blocks) | {"LinearAct": blocks + pooled}
    return {kind: count for kind, count in counts.items() if kind != "ConvBN"}


def _rotated(blocks: int, norm: str, norms: int) -> Counts:
    """Where something stands between projection and core, each is a group of its own."""
    return {"ScaledDotProductAttention": blocks, norm: norms, "LinearAct": blocks}


def _swin(*depths: int, norms: int, pools: int = 1) -> Counts:
    """`pools`: timm's is a mean over height and width in the middle, which is no pool."""
    blocks = sum(depths)
    counts = {
        "MHAInProjection": blocks,
        "SwinWindowPartition": blocks,
        "SwinWindowReverse": blocks,
        "SwinAttention": blocks,
        "LayerNorm": norms,
        "LinearAct": blocks,
        "ConvBN": 1,
        "Linear": 2 * blocks + len(depths),
    }
    return counts | ({"AdaptiveAvgPool": pools} if pools else {})


_DETR = {
    "MHAInProjection": 5,
    "ScaledDotProductAttention": 5,
    "LayerNorm": 9,
    "ConvBNAddAct": 2,
    "ConvBNActMaxPool": 1,
    "ConvBNAct": 2,
    "LinearAct": 3,
    "ConvBN": 2,
    "Linear": 9,
}
COUNTS = {
    "torchvision ViT": _vit(2),
    "timm ViT": _vit(2),
    # Norms of q and k in every block; they stand between the projection and the core.
    "timm ViT, norms of q and k": _rotated(2, "LayerNorm", norms=9) | {"ConvBN": 1, "Linear": 7},
    "transformers ViT eager": _vit(2),
    "transformers ViT sdpa": _vit(2),
    # A norm behind the patches, one per merge, two per block, one at the end.
    "torchvision Swin padded": _swin(2, 2, norms=11),
    "timm Swin": _swin(2, 2, norms=11, pools=0),
    "timm Swin v2": _swin(2, 2, norms=11, pools=0),
    "transformers Swin": _swin(2, 2, norms=11),
    "transformers Swin v2": _swin(2, 2, norms=11),
    "BERT eager": _text(2),
    "BERT sdpa": _text(2),
    "RoBERTa": _text(2),
    "DistilBERT": _text(2),
    "GPT-2 eager": _text(2, pooled=False),
    "GPT-2 sdpa": _text(2, pooled=False),
    # Three projections to attention and two to the gate, which is no bias, act or scale of one.
    "Llama": _rotated(2, "RMSNorm", norms=5) | {"Linear": 13},
    "DETR": _DETR,
}
LARGE = {
    "vit_b_16": _vit(12),
    "vit_small_patch16_224": _vit(12),
    "deit_tiny_patch16_224": _vit(12),
    "hf_vit_eager": _vit(12),
    "hf_vit_sdpa": _vit(12),
    "swin_t": _swin(2, 2, 6, 2, norms=29),
    "swin_tiny_patch4_window7_224": _swin(2, 2, 6, 2, norms=29, pools=0),
    "hf_swin": _swin(2, 2, 6, 2, norms=29),
    "swin_v2_t": _swin(2, 2, 6, 2, norms=29),
    "swinv2_tiny_window8_256": _swin(2, 2, 6, 2, norms=29, pools=0),
    "hf_swinv2": _swin(2, 2, 6, 2, norms=29),
}
# Height and width of the map in each stage of those whose window is 8, not 7.
MAPS = {"swin_v2_t": (56, 28, 14, 7), "swinv2_tiny_window8_256": (64, 32, 16, 8)}
# A static batch makes constants of the first decoder layer's self-attention and of q in its
# cross-attention, neither of which reads the image: another model, with a MatMul unclaimed.
NOT_STATIC = frozenset({"DETR"})


def _windows(size: int, maps: list[int], padding: int = 0) -> list[dict[str, object]]:
    """Of each block: every second one shifts, where the window does not cover the map."""
    found: list[dict[str, object]] = []
    for i, side in enumerate(maps):
        shift = size // 2 if i % 2 and side > size else 0
        pads = -side % size
        details = {"window": [size] * 2, "shift": [shift] * 2, "map": [side] * 2}
        found.append(details | ({"padding": [pads] * 2} if pads else {}))
    return found


def _is_swin(counts: Counts) -> bool:
    return "SwinAttention" in counts


def _maps(name: str) -> list[int]:
    first = 7 if "padded" in name else 8
    return [first, first, 4, 4]


def _check(agreement: Agreement, counts: Counts, windows: list[dict[str, object]]) -> None:
    plan = agreement.plan
    assert plan is not None
    assert plan.counts() == counts
    cuts = [g.details for g in plan.groups if g.kind == "SwinWindowPartition"]
    assert cuts == windows
    assert not agreement.problems, "\n".join(agreement.problems)


def _exported(name: str, folder: Path) -> Iterator[Spelled]:
    """TorchScript, then dynamo; opset by opset, open batch and static, optimized or not."""
    spec = TINY[name]
    oldest = OLDEST if spec.options.get("attn_implementation") == "eager" else SDPA
    yield torchscript(spec, folder, oldest)
    if name not in NOT_STATIC:
        yield torchscript(spec, folder, dynamic=False)
        yield from dynamo(spec, folder, dynamic=False)
    for spelled in dynamo(spec, folder, (18, 20, 23)):
        yield spelled
        if spelled.label == "dynamo 18":
            yield optimized(spelled, folder)


@pytest.mark.parametrize("name", TINY)
def test_exporters_agree(name: str, tmp_path: Path) -> None:
    agreement, plain = Agreement(TINY[name]), torchscript(TINY[name], tmp_path)
    agreement.add(plain)
    agreement.add_proven(plain)
    agreement.add(optimized(plain, tmp_path))
    for spelled in _exported(name, tmp_path):
        agreement.add(spelled)
    counts = COUNTS[name]
    _check(agreement, counts, _windows(4, _maps(name)) if _is_swin(counts) else [])


@pytest.mark.parametrize("name", TINY)
def test_a_simplified_file_agrees(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxslim", reason="onnxslim is not installed: pip install onnxslim")
    agreement, plain = Agreement(TINY[name]), torchscript(TINY[name], tmp_path)
    agreement.add(plain)
    agreement.add(slimmed(plain, tmp_path))
    counts = COUNTS[name]
    _check(agreement, counts, _windows(4, _maps(name)) if _is_swin(counts) else [])


@pytest.mark.parametrize("name", LARGE)
def test_full_size(name: str, tmp_path: Path) -> None:
    if not os.environ.get("FUSEWRIGHT_LARGE"):
        pytest.skip("minutes per model; set FUSEWRIGHT_LARGE=1 to run")
    spec: Spec = ZOO[name]
    agreement, plain = Agreement(spec), torchscript(spec, tmp_path)
    agreement.add(plain)
    agreement.add_proven(plain)
    agreement.add(optimized(plain, tmp_path))
    if importlib.util.find_spec("onnxslim"):
        agreement.add(slimmed(plain, tmp_path))
    agreement.add(torchscript(spec, tmp_path, dynamic=False))
    for spelled in dynamo(spec, tmp_path, (18, 23)):
        agreement.add(spelled)
    counts, sides = LARGE[name], MAPS.get(name, (56, 28, 14, 7))
    maps = [side for side, depth in zip(sides, (2, 2, 6, 2), strict=True) for _ in range(depth)]
    windows = _windows(8 if name in MAPS else 7, maps)
    _check(agreement, counts, windows if _is_swin(counts) else [])
