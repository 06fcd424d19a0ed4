"""The architectures of the zoo as torch modules with seeded random weights.

Weights are random, yet nothing in them is degenerate: BatchNorm statistics are those of the
activations, and parameters that libraries start at a constant (biases, norm weights, layer scales)
are drawn, so that a rewrite that drops or misplaces one changes the output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Spec:
    """One architecture: the library that has it, its name there and how it is made.

    `inputs` maps each input to its shape without the batch; one of rank 1 holds token ids below
    `vocabulary`, or a mask.
    """

    library: str
    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"input": (3, 224, 224)})
    vocabulary: int = 0


def _tv(factory: str, **options: Any) -> Spec:
    return Spec("torchvision", factory, options)


def _timm(factory: str, **options: Any) -> Spec:
    return Spec("timm", factory, options)


_SMALL = {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 384}
_PIXELS = {"pixel_values": (3, 224, 224)}
_TOKENS = {"input_ids": (64,), "attention_mask": (64,)}


def _hf(
    factory: str, attention: str, inputs: Mapping[str, tuple[int, ...]], **options: Any
) -> Spec:
    words = options.get("vocab_size", 0)
    options["attn_implementation"] = attention
    return Spec("transformers", factory, options, inputs, words)


def _hf_vit(attention: str) -> Spec:
    return _hf("ViTForImageClassification", attention, _PIXELS, **_SMALL, num_hidden_layers=12)


def _hf_swin(factory: str, **options: Any) -> Spec:
    # torch 2.13's dynamo exporter fails on its sdpa.
    return _hf(factory, "eager", _PIXELS, embed_dim=48, num_heads=[2, 4, 8, 16], **options)


def _hf_text(factory: str, attention: str = "sdpa", **options: Any) -> Spec:
    return _hf(factory, attention, _TOKENS, vocab_size=1000, **options)


_BERT = {**_SMALL, "num_hidden_layers": 4}
_DISTILBERT = {"dim": 96, "n_layers": 4, "n_heads": 3, "hidden_dim": 384}
_GPT2 = {"n_embd": 96, "n_layer": 4, "n_head": 3, "use_cache": False, "pad_token_id": 0}
_DETR = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "d_model": 96,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 384,
    "decoder_ffn_dim": 384,
    "num_queries": 20,
}

ZOO: dict[str, Spec] = {
    "resnet18": _tv("resnet18"),
    "resnet50": _tv("resnet50"),
    "resnext50_32x4d": _tv("resnext50_32x4d"),
    "mobilenet_v2": _tv("mobilenet_v2"),
    "mobilenet_v3_large": _tv("mobilenet_v3_large"),
    "efficientnet_b0": _tv("efficientnet_b0"),
    "convnext_tiny": _tv("convnext_tiny"),
    "densenet121": _tv("densenet121"),
    "googlenet": _tv("googlenet", aux_logits=False, init_weights=False),
    "regnet_y_400mf": _tv("regnet_y_400mf"),
    "shufflenet_v2_x1_0": _tv("shufflenet_v2_x1_0"),
    "squeezenet1_1": _tv("squeezenet1_1"),
    "vit_b_16": _tv("vit_b_16"),
    "swin_t": _tv("swin_t"),
    "swin_v2_t": _tv("swin_v2_t"),
    "vit_small_patch16_224": _timm("vit_small_patch16_224"),
    "deit_tiny_patch16_224": _timm("deit_tiny_patch16_224"),
    "swin_tiny_patch4_window7_224": _timm("swin_tiny_patch4_window7_224"),
    "repvgg_a0": _timm("repvgg_a0"),
    "mobilenetv4_conv_small": _timm("mobilenetv4_conv_small"),
    "swinv2_tiny_window8_256": Spec(
        "timm", "swinv2_tiny_window8_256", inputs={"input": (3, 256, 256)}
    ),
    "hf_vit_eager": _hf_vit("eager"),
    "hf_vit_sdpa": _hf_vit("sdpa"),
    "hf_swin": _hf_swin("SwinForImageClassification", depths=[2, 2, 6, 2]),
    "hf_swinv2": _hf_swin("Swinv2ForImageClassification", depths=[2, 2, 6, 2], window_size=7),
    "hf_bert_eager": _hf_text("BertForSequenceClassification", "eager", **_BERT),
    "hf_bert_sdpa": _hf_text("BertForSequenceClassification", **_BERT),
    "hf_roberta": _hf_text("RobertaForSequenceClassification", **_BERT),
    "hf_distilbert": _hf_text("DistilBertForSequenceClassification", **_DISTILBERT),
    "hf_gpt2": _hf_text("GPT2LMHeadModel", "eager", **_GPT2),
    "hf_gpt2_sdpa": _hf_text("GPT2LMHeadModel", "sdpa", **_GPT2),
    "hf_detr": _hf("DetrForObjectDetection", "eager", _PIXELS, **_DETR),
}


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """The eval-mode torch module of `name` with weights drawn from `seed`.

    Raises:
        KeyError: no such name in `ZOO`.
    """
    return make(ZOO[name], seed)


def make(spec: Spec, seed: int = 0) -> torch.nn.Module:
    """The eval-mode torch module that `spec` describes, with weights drawn from `seed`."""
    import torch

    torch.manual_seed(seed)
    model = _LOADERS[spec.library](spec).eval()
    _randomize(model)
    _settle_batch_norms(model, example(spec, batch=8))
    return model


def example(spec: Spec, batch: int = 2) -> tuple[torch.Tensor, ...]:
    """Random inputs of `spec`: normal images, token ids, and ones for an attention mask."""
    import torch

    tensors = []
    for name, shape in spec.inputs.items():
        if len(shape) > 1:
            tensors.append(torch.randn(batch, *shape))
        elif "mask" in name:
            tensors.append(torch.ones(batch, *shape, dtype=torch.int64))
        else:
            tensors.append(torch.randint(0, spec.vocabulary, (batch, *shape)))
    return tuple(tensors)


def import_torchvision() -> ModuleType:
    """Torchvision, on a CPU-only torch too; whatever imports it must come after this."""
    import torch

    try:
        import torchvision
    except RuntimeError:
        # Its wheel's compiled operators need the CUDA build of torch. On a CPU-only one the import
        # fails for want of these two, which no classifier runs: declared, the second try succeeds.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT_ALIVE.append(library)
        import torchvision

    return torchvision


def _load_torchvision(spec: Spec) -> torch.nn.Module:
    factory = getattr(import_torchvision().models, spec.factory)
    if isinstance(factory, type):  # the class behind the named sizes
        return factory(**spec.options)
    return factory(weights=None, **spec.options)


def _load_timm(spec: Spec) -> torch.nn.Module:
    import_torchvision()
    import timm

    return timm.create_model(spec.factory, pretrained=False, **spec.options)


def _load_transformers(spec: Spec) -> torch.nn.Module:
    import torch

    with contextlib.suppress(ModuleNotFoundError):
        import_torchvision()  # optional for transformers, but broken it breaks them too
    import transformers

    class Logits(torch.nn.Module):
        """The model's logits alone, its inputs positional."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(**dict(zip(spec.inputs, inputs, strict=True))).logits

    factory = getattr(transformers, spec.factory)
    return Logits(factory(factory.config_class(**spec.options)))


_KEPT_ALIVE: list[Any] = []  # a torch.library.Library undoes its definitions when collected
_LOADERS: Mapping[str, Callable[[Spec], torch.nn.Module]] = {
    "torchvision": _load_torchvision,
    "timm": _load_timm,
    "transformers": _load_transformers,
}


def _randomize(model: torch.nn.Module) -> None:
    """Draws every parameter, and frozen statistic, that its library starts at a constant."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            low, high = parameter.min(), parameter.max()
            if parameter.numel() == 1 or high - low > 1e-4:
                continue
            if high == 1:
                parameter.uniform_(0.5, 1.5)  # the weight of a norm
            elif high > 0:
                parameter.uniform_(0.1, 0.5)  # a layer scale, 1e-6 in ConvNeXt
            else:
                parameter.normal_(0, 0.1)  # a bias
        for module in model.modules():
            if type(module).__name__ == "DetrFrozenBatchNorm2d":
                for name, buffer in module.named_buffers():
                    if name in ("weight", "running_var"):
                        buffer.uniform_(0.5, 1.5)
                    else:
                        buffer.normal_(0, 0.1)


def _settle_batch_norms(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Gives each BatchNorm the statistics of its activations: no depth dies or blows up."""
    import torch

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        variance = norm.running_var
        variance.clamp_(min=0.1 * float(variance.mean()))  # behind a pool there are few values
