"""Transformers of real libraries in tiny, by name.

Head size 16, so that INT8 attention fuses; two blocks per stage, so that Swin shifts in the second,
and in the last stage the window covers the map. Where `padded`, the map is no multiple of the
window.
"""

from __future__ import annotations

from typing import Any

from architectures import Spec

_IMAGE = {"input": (3, 32, 32)}
_PIXELS = {"pixel_values": (3, 32, 32)}
_PADDED = {"input": (3, 28, 28)}
_TEXT = {"input_ids": (24,), "attention_mask": (24,)}
_WORDS = 100
_WIDTHS = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96}
_BLOCKS = {"num_hidden_layers": 2}
_SWIN = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4]}


_TIMM_VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
_TIMM_SWIN = _SWIN | {"img_size": 32, "window_size": 4}


def _vit(attention: str) -> Spec:
    options = {"image_size": 32, "patch_size": 8, "attn_implementation": attention}
    return Spec("transformers", "ViTForImageClassification", _WIDTHS | _BLOCKS | options, _PIXELS)


def _swin(factory: str) -> Spec:
    # torch 2.13's dynamo exporter fails on its sdpa.
    options = {"image_size": 32, "window_size": 4, "attn_implementation": "eager"}
    return Spec("transformers", factory, _SWIN | options, _PIXELS)


def _text(factory: str, attention: str = "sdpa", **options: Any) -> Spec:
    given = {"vocab_size": _WORDS, "attn_implementation": attention} | options
    return Spec("transformers", factory, given, _TEXT, _WORDS)


_BERT = _WIDTHS | _BLOCKS
_GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 3, "use_cache": False, "pad_token_id": 0}
# Two heads of queries to one of keys, rotated; RMSNorm, which opset 23 has as an operator.
_LLAMA = (
    _WIDTHS
    | _BLOCKS
    | {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "use_cache": False,
    }
)
_BACKBONE = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "out_features": ["stage2"],
}
_DETR = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": _BACKBONE,
    "d_model": 48,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "num_queries": 10,
    "attn_implementation": "eager",
}

TINY: dict[str, Spec] = {
    "torchvision ViT": Spec(
        "torchvision",
        "VisionTransformer",
        {
            "image_size": 32,
            "patch_size": 8,
            "num_layers": 2,
            "num_heads": 3,
            "hidden_dim": 48,
            "mlp_dim": 96,
            "num_classes": 10,
        },
        _IMAGE,
    ),
    "timm ViT": Spec(
        "timm",
        "vit_small_patch16_224",
        _TIMM_VIT,
        _IMAGE,
    ),
    "timm ViT, norms of q and k": Spec(
        "timm",
        "vit_small_patch16_224",
        _TIMM_VIT | {"qk_norm": True},
        _IMAGE,
    ),
    "transformers ViT eager": _vit("eager"),
    "transformers ViT sdpa": _vit("sdpa"),
    "torchvision Swin padded": Spec(
        "torchvision",
        "SwinTransformer",
        _SWIN | {"patch_size": [4, 4], "window_size": [4, 4], "num_classes": 10},
        _PADDED,
    ),
    "timm Swin": Spec("timm", "swin_tiny_patch4_window7_224", _TIMM_SWIN, _IMAGE),
    "timm Swin v2": Spec("timm", "swinv2_tiny_window8_256", _TIMM_SWIN, _IMAGE),
    "transformers Swin": _swin("SwinForImageClassification"),
    "transformers Swin v2": _swin("Swinv2ForImageClassification"),
    "BERT eager": _text("BertForSequenceClassification", "eager", **_BERT),
    "BERT sdpa": _text("BertForSequenceClassification", **_BERT),
    "RoBERTa": _text("RobertaForSequenceClassification", **_BERT),
    "DistilBERT": _text(
        "DistilBertForSequenceClassification", dim=48, n_layers=2, n_heads=3, hidden_dim=96
    ),
    "GPT-2 eager": _text("GPT2LMHeadModel", "eager", **_GPT2),
    "GPT-2 sdpa": _text("GPT2LMHeadModel", **_GPT2),
    "Llama": _text("LlamaForCausalLM", **_LLAMA),
    "DETR": Spec("transformers", "DetrForObjectDetection", _DETR, _PIXELS),
}
